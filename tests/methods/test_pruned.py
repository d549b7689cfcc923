"""What the pruning methods share: masks, plans before training, the serving form."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.deep_light import DeepLight
from recemb.methods.pep import PEP
from recemb.methods.pruned import FixedMask, PrunedTables, _spread
from recemb.methods.sparse_rows import form_of
from recemb.tables.full import full_plan
from recemb.tables.layout import group_tables
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name=name, num_embeddings=n, embedding_dim=10, feature_names=(f"f.{name}",))
    for name, n in (("a", 30), ("b", 7))
]
CPU = torch.device("cpu")


def test_masked_values_get_no_gradient_and_the_row_wise_state_does_not_see_them():
    mask = torch.rand(30, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    optimizer = TableOptimizer(kind="rowwise_adagrad", learning_rate=0.1, eps=0.0)
    tables = PrunedTables(SPECS, masks={"a": mask}, optimizer=optimizer, seed=0, device=CPU)
    before = tables.table("a").clone()
    features = KeyedJaggedTensor(
        keys=["f.a", "f.b"], values=torch.tensor([4, 2]), lengths=torch.tensor([1, 1])
    )
    tables(features)["f.a"].sum().backward()
    expected = before.clone()
    # The mean of g^2 over a row is the share of values that stay.
    expected[4] -= 0.1 * mask[4] / mask[4].float().mean().sqrt()
    torch.testing.assert_close(tables.table("a"), expected)
    assert torch.equal(tables.served("a"), tables.table("a") * mask)


def test_a_mask_leaves_tables_alone_that_have_none():
    group = group_tables(full_plan(SPECS))[0]
    fixed = FixedMask(group, {"b": torch.zeros(7, 10, dtype=torch.bool)})
    rows = torch.tensor([29, 30, -1])
    vectors = torch.ones(3, 10)
    assert fixed(vectors, rows, torch.tensor([0, 1, 1]))[:2].sum(dim=1).tolist() == [10, 0]


@pytest.mark.parametrize("share", [1, 7, 29, 30, 31, 150, 299, 300])
def test_a_plan_spreads_values_over_all_rows_that_they_suffice_for(share):
    mask = _spread(SPECS[0], share)
    assert int(mask.sum()) == share
    assert int(mask.any(dim=1).sum()) == min(share, 30)


# Table 2.0.2 of Zhang et al.'s budgets, for a bitmap: share of the values at D = 16.
@pytest.mark.parametrize(("ratio", "share"), [(0.5, 0.468), (0.25, 0.218), (0.1, 0.068)])
def test_a_plan_holds_the_published_share_of_values(ratio, share):
    spec = TableSpec(name="t", num_embeddings=200_000, embedding_dim=16, feature_names=("f",))
    plan = DeepLight().plan([spec], {}, Budget(ratio=ratio))
    assert plan.parameters["values"]["t"] / (16 * 200_000) == pytest.approx(share, abs=1e-3)
    assert plan.storage.serve_bytes == pytest.approx(ratio * 4 * 16 * 200_000, abs=8)


def test_a_plan_without_a_budget_is_of_full_tables_or_of_the_method_s_sparsity():
    assert PEP().plan(SPECS, {}, None).storage.serve_bytes == 4 * 37 * 10
    found = DeepLight(sparsity=0.9).plan(SPECS, {}, None).parameters["values"]
    assert found == {"a": 30, "b": 7}


def test_a_budget_on_training_memory_is_not_kept_by_pruning():
    budget = Budget(ratio=0.5, of="train")
    assert not DeepLight().plan(SPECS, {}, budget).is_feasible
    with pytest.raises(ValueError, match=r"DeepLight: the budget allows 740 bytes.*least is 1,480"):
        DeepLight().build(SPECS, {}, budget, optimizer=None, seed=0, device=CPU)


def test_tables_without_zeros_stay_as_they_are_in_serving():
    mask = torch.zeros(30, 10, dtype=torch.bool)
    mask[:3, 0] = True
    tables = PrunedTables(SPECS, masks={"a": mask}, optimizer=None, seed=0, device=CPU)
    frozen = tables.freeze()
    assert list(frozen.sources) == ["a"]
    assert [spec.name for spec in frozen.planned.specs] == ["b"]
    expected = form_of(tables.served("a")).num_bytes + 4 * 70
    assert frozen.storage().serve_bytes == tables.storage().serve_bytes == expected
