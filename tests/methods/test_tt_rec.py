"""TT-Rec: the published budgets, the formula, the deviation of its rows, gradients."""

import numpy as np
import pytest
import torch

from recemb.methods.tt_rec import TTCores, TTRec, factor_ids, factor_width, middle_product
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

# Rank and realised ratio, worked out from the study's formula.
BUDGETS = [
    ("criteo", 0.5, 376, 0.49785),
    ("criteo", 0.25, 260, 0.24927),
    ("criteo", 0.2, 230, 0.19900),
    ("criteo", 0.1, 157, 0.09990),
    ("criteo", 0.05, 108, 0.04939),
    ("criteo", 0.01, 46, 0.00998),
    ("criteo", 0.005, 31, 0.00475),
    ("criteo", 0.002, 19, 0.00191),
    ("criteo", 0.001, 13, 0.00095),
    ("criteo", 0.0001, 3, 0.00008),
    ("avazu", 0.5, 336, 0.49778),
    ("avazu", 0.25, 236, 0.24829),
    ("avazu", 0.2, 211, 0.19947),
    ("avazu", 0.1, 147, 0.09923),
    ("avazu", 0.05, 101, 0.04913),
    ("avazu", 0.01, 40, 0.00969),
    ("avazu", 0.005, 28, 0.00500),
    ("avazu", 0.002, 16, 0.00182),
    ("avazu", 0.001, 11, 0.00094),
    ("avazu", 0.0001, 2, 0.00006),
]


def cores(*, n=1000, width=16, rank=8, seed=0, std=0.1):
    source = TTCores(num_embeddings=n, embedding_dim=width, rank=rank, std=std)
    source.initialise(torch.Generator().manual_seed(seed))
    return source


@pytest.mark.parametrize(("name", "ratio", "rank", "realised"), BUDGETS)
def test_the_plan_is_that_of_the_published_budget(published_specs, name, ratio, rank, realised):
    plan = TTRec().plan(published_specs(name), {}, Budget(ratio=ratio))
    assert plan.is_feasible
    assert plan.parameters["rank"] == rank
    # The table of published budgets rounds to five digits.
    assert plan.ratio == pytest.approx(realised, abs=1e-5)


def test_below_rank_one_the_plan_is_infeasible_and_its_size_is_that_of_rank_one():
    specs = [TableSpec(name="t", num_embeddings=1000, embedding_dim=16, feature_names=("f",))]
    plan = TTRec().plan(specs, {}, Budget(ratio=0.001))
    assert not plan.is_feasible
    # p = (10, 10, 10), q = (2, 2, 4), rank 1.
    assert plan.storage.serve_bytes == 4 * (20 + 20 + 40)


def test_tables_that_cores_would_not_shrink_stay():
    specs = [
        TableSpec(name=f"t{n}", num_embeddings=n, embedding_dim=16, feature_names=(f"f{n}",))
        for n in (5, 100_000)
    ]
    tables = TTRec().build(
        specs, {}, Budget(ratio=0.01), optimizer=None, seed=0, device=torch.device("cpu")
    )
    assert tables.source_of == {"t100000": "t100000"}
    assert [spec.name for spec in tables.planned.specs] == ["t5"]


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 26, 27, 28, 1000, 1001, 10_131_227, 2**31])
def test_three_factors_reach_every_id_and_hardly_more(n):
    factors = factor_ids(n)
    assert np.prod(factors) >= n
    # Each factor was rounded up once.
    assert np.prod([f - 1 for f in factors]) < n


@pytest.mark.parametrize(
    ("width", "factors"),
    [
        (1, (1, 1, 1)),
        (7, (1, 1, 7)),
        (8, (2, 2, 2)),
        (16, (2, 2, 4)),
        (32, (2, 4, 4)),
        (64, (4, 4, 4)),
        (128, (4, 4, 8)),
        (12, (2, 2, 3)),
    ],
)
def test_the_width_is_cut_as_the_study_cuts_it(width, factors):
    assert factor_width(width) == factors


def test_rows_are_the_tensor_train_written_out():
    source = cores(n=60, width=12, rank=3)
    (p1, p2, p3), (q1, q2, q3) = source.digits, source.widths
    first = source.first.detach().numpy().astype(np.float64)
    middle = source.middle.detach().numpy().astype(np.float64).reshape(p2, 3, q2, 3)
    last = source.last.detach().numpy().astype(np.float64)
    whole = np.einsum("xar,yrbs,zsc->zyxabc", first, middle, last).reshape(-1, q1 * q2 * q3)
    assert len(whole) == p1 * p2 * p3
    rows = source("t", torch.arange(60)).detach()
    # Nine float32 products a value.
    np.testing.assert_allclose(rows, whole[:60], rtol=1e-5, atol=1e-7)


def test_distinct_ids_have_distinct_rows():
    rows = cores(n=5000)("t", torch.arange(5000)).detach()
    assert len(torch.unique(rows, dim=0)) == 5000


@pytest.mark.parametrize("rank", [8, 32, 64])
def test_initial_rows_have_the_deviation_that_was_asked_for(rank):
    # Enough cores that their own scatter is below a percent.
    source = cores(n=100_000, rank=rank, std=1.8e-4)
    rows = source("t", torch.arange(0, 100_000, 7)).detach()
    assert float(rows.std()) == pytest.approx(1.8e-4, rel=0.05)


@pytest.mark.parametrize("num_ids", [0, 1, 3, 63])
def test_grouping_ids_by_slice_equals_gathering_slices(num_ids):
    generator = torch.Generator().manual_seed(num_ids)
    left = torch.randn(num_ids, 2, 5, generator=generator, dtype=torch.float64)
    core = torch.randn(7, 5, 15, generator=generator, dtype=torch.float64)
    slices = torch.randint(0, 7, (num_ids,), generator=generator)
    found = []
    for most in (1 << 30, 0):
        inputs = [left.clone().requires_grad_(), core.clone().requires_grad_()]
        out = middle_product(*inputs, slices, most=most)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        found.append([out, *(i.grad for i in inputs)])
    for gathered, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, gathered)


def test_gradients_are_those_of_finite_differences():
    source = cores(n=30, width=8, rank=2, std=1.0).double()
    ids = torch.tensor([0, 3, 3, 29, 17])

    def rows(first, middle, last):
        values = {"first": first, "middle": middle, "last": last}
        return torch.func.functional_call(source, values, ("t", ids))

    inputs = [p.detach().clone().requires_grad_() for p in source.parameters()]
    assert torch.autograd.gradcheck(rows, inputs)
