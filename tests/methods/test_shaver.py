"""Shaver: Shapley values of columns, what a budget keeps, serving, interruptions."""

import itertools

import pytest
import torch

from recemb.methods.shaver import Shaver, column_means, columns_of, fitting, gains_in_order
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

CPU = torch.device("cpu")
SPECS = [
    TableSpec(name="a", num_embeddings=40, embedding_dim=2, feature_names=("f0", "f1")),
    TableSpec(name="w", num_embeddings=10, embedding_dim=1, feature_names=("f2",)),
]
STATS = {
    "f0": torch.zeros(40, dtype=torch.long),
    "f1": torch.zeros(40, dtype=torch.long),
    "f2": torch.arange(10),
}
STATS["f0"][3], STATS["f1"][3], STATS["f1"][5] = 2, 1, 1


def build(budget=None, specs=SPECS):
    return Shaver().build(specs, {}, budget, optimizer=None, seed=1, device=CPU)


class Game:
    """The losses of coalitions: a table by the columns that are kept."""

    def __init__(self, worth, together=0.0):
        self.worth, self.together = worth, together

    def validation_batch(self, position):
        return position

    def loss(self, tables, batch):
        kept = {c for c in self.worth if bool(tables.kept(c[0])[c[1]])}
        both = self.together if {("a", 0), ("a", 1)} <= kept else 0.0
        return 1.0 - sum(self.worth[c] for c in kept) - both


def test_gains_of_an_additive_game_are_the_worths():
    worth = {("a", 0): 0.3, ("a", 1): -0.1, ("w", 0): 0.05}
    columns = columns_of(SPECS)
    found = gains_in_order(build(), Game(worth), columns, [2, 0, 1], 0)
    assert found.tolist() == pytest.approx([worth[c] for c in columns])


def test_what_two_columns_gain_together_is_shared_over_all_orders():
    worth = {("a", 0): 0.3, ("a", 1): 0.1, ("w", 0): 0.0}
    game, columns, tables = Game(worth, together=0.2), columns_of(SPECS), build()
    orders = list(itertools.permutations(range(3)))
    total = sum(gains_in_order(tables, game, columns, order, 0) for order in orders)
    assert (total / len(orders)).tolist() == pytest.approx([0.4, 0.2, 0.0])


def test_defaults_are_means_over_the_training_ids():
    tables = build()
    weight = tables.table("a").detach()
    found = column_means(tables, STATS)
    torch.testing.assert_close(found["a"], (3 * weight[3] + weight[5]) / 4)
    torch.testing.assert_close(
        found["w"], (torch.arange(10.0).unsqueeze(1) * tables.table("w")).sum(0).detach() / 45
    )


def test_columns_are_kept_while_they_fit():
    ranked = [("a", 1), ("w", 0), ("a", 0)]
    # Nothing kept: 2 defaults and a byte for a, a default and a byte for w: 9 + 5 bytes.
    # A column of a is 160 bytes more and a default less; w whole is 40 bytes instead of 5.
    assert fitting(SPECS, ranked, 14) == []
    assert fitting(SPECS, ranked, 14 + 155) == [("w", 0)]
    assert fitting(SPECS, ranked, 14 + 156) == [("a", 1)]
    assert fitting(SPECS, ranked, 14 + 156 + 35) == [("a", 1), ("w", 0)]
    assert fitting(SPECS, ranked, 320 + 40) == ranked


def test_worth_for_each_byte_prefers_small_tables():
    worth = {("a", 0): 0.3, ("a", 1): 0.2, ("w", 0): 0.1}
    budget = Budget(num_bytes=14 + 156)
    assert Shaver().chosen(SPECS, worth, budget) == [("w", 0)]
    assert Shaver(rank_by="worth").chosen(SPECS, worth, budget) == [("a", 0)]


def test_without_a_budget_columns_of_positive_worth_stay():
    worth = {("a", 0): 0.3, ("a", 1): -0.2, ("w", 0): 0.0}
    assert Shaver().chosen(SPECS, worth, None) == [("a", 0)]


def test_served_tables_give_the_same_bits_in_the_bytes_they_say():
    tables = build()
    tables.set_defaults(column_means(tables, STATS))
    tables.keep({"a": torch.tensor([False, True])})
    frozen = tables.eval().freeze()
    for key, (spec, _) in tables.outputs.items():
        ids = torch.arange(spec.num_embeddings)
        assert torch.equal(frozen.rows(key, ids), tables.rows(key, ids))
    assert tables.rows("f0", torch.arange(40))[:, 0].unique().numel() == 1
    stored = sum(t.nbytes for t in frozen.state_dict().values())
    assert stored == tables.storage().serve_bytes == 4 * 40 + 4 + 1 + 4 * 10


def test_shaved_columns_get_no_gradient():
    tables = build()
    tables.keep({"a": torch.tensor([False, True])})
    tables.rows("f0", torch.arange(40)).sum().backward()
    store = tables.engine.store_of("a")
    assert not store.weight.grad[:, 0].any()
    assert store.weight.grad[:, 1].all()


@pytest.mark.parametrize("wrong", [{"num_orders": 0}, {"rank_by": "size"}], ids=str)
def test_words_and_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="Shaver: "):
        Shaver(**wrong)


@pytest.mark.parametrize("finetune", [True, False])
def test_the_column_that_decides_is_kept(staged, finetune):
    method = Shaver(num_orders=2, finetune=finetune)
    context = staged(method.stages, budget=Budget(ratio=0.34), epochs=2)
    tables = method.run(context)
    assert tables.storage().serve_bytes <= Budget(ratio=0.34).allowed_bytes(context.specs)
    kept = {spec.name: int(tables.kept(spec.name).sum()) for spec in context.specs}
    # Clicks follow the first of three features.
    assert kept["f0"] >= max(kept["f1"], kept["f2"])
    assert context.evaluate(tables)["val/auc"] > 0.6


# A fit of 12 updates and a score, then losses that are scores of the context, then 12 updates.
@pytest.mark.parametrize("stop_at", [8, 22])
def test_a_run_killed_in_either_stage_ends_as_if_undisturbed(stop_at, resumes):
    resumes(Shaver(num_orders=1), stop_at, budget=Budget(ratio=0.5), epochs=1)


def test_a_run_killed_between_orders_keeps_those_that_are_done(staged, monkeypatch):
    method = Shaver(num_orders=2)
    columns = len(columns_of(staged(method.stages, folder="size").specs))
    calls = []

    def run(stop_at=None):
        context = staged(method.stages, folder="orders", budget=Budget(ratio=0.5), epochs=1)
        loss = context.loss

        def counted(tables, batch):
            calls.append(1)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return loss(tables, batch)

        monkeypatch.setattr(context, "loss", counted)
        return method.run(context)

    with pytest.raises(KeyboardInterrupt):
        run(stop_at=columns + 5)
    calls.clear()
    run()
    assert len(calls) == columns + 1


def test_losses_of_the_validation_batches_are_the_evaluation_s(staged):
    method = Shaver(num_orders=1, finetune=False)
    context = staged(method.stages, epochs=1)
    tables = method.run(context)
    num_batches = context.prepared.num_batches("val", batch_size=100)
    batches = [context.validation_batch(position) for position in range(num_batches)]
    total = sum(context.loss(tables, batch) * len(batch) for batch in batches)
    mean = total / sum(len(batch) for batch in batches)
    assert mean == pytest.approx(context.evaluate(tables)["val/logloss"], rel=1e-5)
