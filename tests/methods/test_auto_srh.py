"""AutoSrh: frequency groups, the step of the gates, pruning to the budget, interruptions."""

import pytest
import torch

from recemb.methods.auto_srh import AutoSrh, Gates, frequency_groups
from recemb.tables.full import full_plan
from recemb.tables.layout import group_tables
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name="a", num_embeddings=4, embedding_dim=2, feature_names=("f0", "f1")),
    TableSpec(name="b", num_embeddings=2, embedding_dim=2, feature_names=("f2",)),
    TableSpec(name="w", num_embeddings=4, embedding_dim=1, feature_names=("f0",)),
]
STATS = {
    "f0": torch.tensor([9, 0, 5, 1]),
    "f1": torch.tensor([1, 0, 2, 2]),
    "f2": torch.tensor([8, 3]),
}


def test_groups_are_cut_through_the_ids_of_all_tables_in_order_of_their_counts():
    # The counts are 10, 0, 7, 3 and 8, 3: in order 10, 8 | 7, 3, 3 | 0, for ties stay together.
    found = frequency_groups(SPECS, STATS, 3)
    assert {name: group.tolist() for name, group in found.items()} == {
        "a": [0, 2, 1, 1],
        "b": [0, 1],
    }


def test_groups_are_of_about_equal_size_where_counts_differ():
    spec = TableSpec(name="t", num_embeddings=1000, embedding_dim=2, feature_names=("f",))
    counts = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    found = frequency_groups([spec], {"f": counts}, 6)["t"]
    sizes = found.bincount()
    assert sizes.numel() == 6
    assert int(sizes.max() - sizes.min()) <= 1
    assert int(counts[found == 0].min()) > int(counts[found == 5].max())


def test_rows_are_multiplied_by_the_gates_of_their_groups():
    group = group_tables(full_plan(SPECS))[0]
    gates = Gates(group, frequency_groups(SPECS, STATS, 3), 3)
    gates.alpha.copy_(torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.25]]))
    vectors = torch.tensor([[2.0, 4.0]]).repeat(6, 1)
    found = gates(vectors, torch.arange(6), torch.tensor([0, 0, 0, 0, 1, 1]))
    assert found.tolist() == [[2, 0], [0, 1], [1, 4], [1, 4], [2, 0], [1, 4]]


class OneLoss:
    """The part of a fit that a step of gates asks: sum(w * e(ids)) of a fixed batch."""

    def __init__(self, tables, features, weights):
        self.tables, self.features, self.weights = tables, features, weights

    def next_validation_batch(self):
        return self.features

    def loss(self, features):
        return (self.tables(features).values() * self.weights).sum()


def test_a_step_of_gates_is_normalised_by_group_and_clipped(staged):
    context = staged(AutoSrh.stages)
    method = AutoSrh(num_groups=2, learning_rate=0.25, l1=0.5)
    tables = method.gated(context)
    (gates,) = tables.transforms.all()
    gates.alpha.fill_(0.5)
    features = next(context.prepared.batches("train", batch_size=64)).features
    width = sum(tables.embedding_dims.values())
    weights = torch.randn(64, width, generator=torch.Generator().manual_seed(0)) * 5
    # d/d alpha[g, d] of the loss is the sum of w v over the ids of group g; l1 adds 0.5.
    expected = torch.full((2, 8), 0.5)
    groups = frequency_groups(context.specs, context.id_counts, 2)
    for f in range(3):
        ids = features[f"f{f}"].values()
        columns = weights[:, 8 * f : 8 * f + 8]
        vectors = tables.table(f"f{f}")[ids]
        expected.index_add_(0, groups[f"f{f}"][ids].long(), columns * vectors)
    expected = expected / expected.abs().mean(dim=1, keepdim=True)
    before = {s.name: tables.table(s.name).clone() for s in context.specs}
    method.step_gates(tables, [gates.alpha], OneLoss(tables, features, weights))
    torch.testing.assert_close(gates.alpha, (0.5 - 0.25 * expected).clamp(0, 1))
    assert float(gates.alpha.min()) == 0.0
    assert all(torch.equal(tables.table(name), weight) for name, weight in before.items())


@pytest.mark.parametrize(
    "wrong",
    [{"num_groups": 0}, {"warmup_epochs": 0}, {"l1": -1.0}, {"order": "prune"}],
    ids=str,
)
def test_words_and_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="AutoSrh: "):
        AutoSrh(**wrong)


def states_of(context, note):
    """Call `note` with the stage, before (True) and after (False) each fit."""
    fit = context.fit

    def noted(tables, *, stage, recipe=None):
        note(stage, tables, True)
        found = fit(tables, stage=stage, recipe=recipe)
        note(stage, tables, False)
        return found

    context.fit = noted


@pytest.mark.parametrize("freeze_model", [True, False])
def test_the_search_moves_gates_and_rows_and_the_model_only_if_told_so(staged, freeze_model):
    context, seen = staged(AutoSrh.stages, epochs=1), {}

    def note(stage, tables, is_before):
        if stage == "search":
            model = context.fitted.model.state_dict()
            seen[is_before] = (
                [v.clone() for v in model.values()],
                tables.transforms.all()[0].alpha.clone(),
                tables.table("f0").clone(),
            )

    states_of(context, note)
    AutoSrh(freeze_model=freeze_model).run(context)
    (model, alpha, rows), (model_after, alpha_after, rows_after) = seen[True], seen[False]
    assert bool((alpha == 1).all())
    assert not torch.equal(alpha, alpha_after)
    assert not torch.equal(rows, rows_after)
    is_same = all(torch.equal(a, b) for a, b in zip(model, model_after, strict=True))
    assert is_same == freeze_model


@pytest.mark.parametrize("order", ["prune_retrain", "retrain_prune"])
def test_the_tables_fill_the_budget_and_keep_it(staged, order):
    budget = Budget(ratio=0.3)
    context = staged(AutoSrh.stages, budget=budget, epochs=1)
    tables = AutoSrh(order=order).run(context)
    allowed = budget.allowed_bytes(context.specs)
    assert allowed - 100 < tables.storage().serve_bytes <= allowed
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)


def test_retraining_begins_with_the_gated_values_of_the_search(staged):
    context, seen = staged(AutoSrh.stages, budget=Budget(ratio=0.3), epochs=1), {}

    def note(stage, tables, is_before):
        seen[stage, is_before] = {s.name: tables.served(s.name).clone() for s in context.specs}

    states_of(context, note)
    AutoSrh(learning_rate=0.05).run(context)
    for name, gated in seen["search", False].items():
        begun = seen["retrain", True][name]
        assert torch.equal(begun, torch.where(begun != 0, gated, 0))
        assert not torch.equal(begun, seen["retrain", False][name])


def test_at_a_quarter_of_the_bytes_it_is_well_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.25)
    context = staged(AutoSrh.stages, budget=budget, epochs=4)
    tables = AutoSrh().run(context)
    auc = context.evaluate(tables)["val/auc"]
    assert auc > 0.8
    assert auc > hashed_auc(budget, epochs=4) + 0.02


# Calls of the warm-up: the fit, 12 updates, a score; of the search: the fit, 24 losses, a score; of
# the retraining as of the warm-up.
@pytest.mark.parametrize("stop_at", [30, 50])
def test_a_run_killed_in_a_stage_ends_as_if_undisturbed(resumes, stop_at):
    resumes(AutoSrh(), stop_at, budget=Budget(ratio=0.3), epochs=1)
