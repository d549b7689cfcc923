"""Code compiled once serves every size, layout and number of threads."""

import pytest
import torch
from torch import Tensor

from recemb.kernels import compiled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def scaled(values: Tensor, factors: Tensor, offset: Tensor) -> Tensor:
    return values * factors + offset


def arguments(rows: int, columns: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    values = torch.arange(rows * columns, dtype=dtype).view(rows, columns)
    return values, torch.arange(rows, dtype=dtype).unsqueeze(1) + 3, torch.tensor(5, dtype=dtype)


@pytest.mark.slow
def test_one_compilation_serves_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    make = compiled._compile
    monkeypatch.setattr(compiled, "_compile", lambda *a: calls.append(a) or make(*a))
    function = compiled._Compiled(scaled)
    for rows, columns in ((4, 9), (2, 3), (7, 1000), (300, 2)):
        inputs = arguments(rows, columns)
        assert torch.equal(function(*inputs), scaled(*inputs))
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (9, 1), (1, 1)])
def test_sizes_of_one_have_code_of_their_own(rows: int, columns: int) -> None:
    function = compiled._Compiled(scaled)
    for inputs in (arguments(4, 9), arguments(rows, columns), arguments(5, 8)):
        assert torch.equal(function(*inputs), scaled(*inputs))


@pytest.mark.slow
def test_other_types_and_layouts_are_served() -> None:
    function = compiled._Compiled(scaled)
    first = arguments(4, 9)
    assert torch.equal(function(*first), scaled(*first))
    narrow = arguments(4, 9, torch.int32)
    assert torch.equal(function(*narrow), scaled(*narrow))
    turned = (first[0].t().contiguous().t(), *first[1:])
    assert not turned[0].is_contiguous()
    assert torch.equal(function(*turned), scaled(*turned))


@pytest.mark.slow
def test_another_number_of_threads_compiles_again() -> None:
    function, inputs, before = (
        compiled._Compiled(scaled),
        arguments(40, 1000),
        torch.get_num_threads(),
    )
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(function(*inputs), scaled(*inputs))
    finally:
        torch.set_num_threads(before)
    assert len(function._codes) == 2
