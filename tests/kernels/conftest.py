"""What all kernel tests share; needs torch and triton alone, no torchrec.

Where recemb is not installed (a GPU machine with torch and triton only), the checkout's folders
stand in: run `pytest tests/kernels` from the checkout, with `-m gpu` for the hardware alone.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[2]


def _stand_in_for_the_package() -> None:
    """Make `recemb.kernels` importable from the checkout if recemb is not installed."""
    if importlib.util.find_spec("recemb") is None:
        sys.path.insert(0, str(CHECKOUT))
    if importlib.util.find_spec("recemb.kernels") is not None:
        return
    folder = CHECKOUT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "recemb.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recemb.kernels"] = module
    spec.loader.exec_module(module)
    importlib.import_module("recemb").kernels = module


_stand_in_for_the_package()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Return where to run: under the interpreter, and, if asked for by `-m gpu`, on a GPU."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("hardware: the interpreter is off where there is a CUDA device")
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty and its kin return with NaN, or a wild integer, while a test runs."""

    def poisoned(function: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor: torch.Tensor = function(*args, **kwargs)
            if torch.compiler.is_compiling() or tensor.device.type == "meta":
                return tensor
            if type(tensor) is not torch.Tensor:
                return tensor
            if tensor.dtype.is_floating_point:
                return tensor.fill_(float("nan"))
            return tensor if tensor.dtype == torch.bool else tensor.fill_(99)

        return fill

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty",):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))
