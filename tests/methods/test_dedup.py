"""Dedup: blocks across tables, exact budgets, the two stages, interruptions."""

import pytest
import torch

from recemb.methods.dedup import Dedup
from recemb.tables.full import full_tables
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name="a", num_embeddings=50, embedding_dim=4, feature_names=("f0",)),
    TableSpec(name="b", num_embeddings=33, embedding_dim=4, feature_names=("f1",)),
    TableSpec(name="w", num_embeddings=50, embedding_dim=1, feature_names=("f0",)),
]
CPU = torch.device("cpu")


def build(method, budget, specs=SPECS):
    return method.build(specs, {}, budget, optimizer=None, seed=1, device=CPU)


def test_a_row_is_that_of_the_block_that_stands_for_its_own():
    method, budget = Dedup(block_rows=5), Budget(ratio=0.5)
    full = full_tables(SPECS, seed=1, device=CPU)
    owners, tables = method.owners(full, SPECS, budget), build(method, budget)
    rows = torch.cat([full.table("a"), full.table("b"), torch.zeros(2, 4)]).view(17, 5, 4)
    expected = rows[owners["blocks_4"]].view(85, 4)
    assert torch.equal(tables.rows("f0@a", torch.arange(50)), expected[:50])
    assert torch.equal(tables.rows("f1", torch.arange(33)), expected[50:83])


def test_a_budget_holds_as_many_blocks_as_its_share_has_room_for():
    plan = Dedup(block_rows=5).plan(SPECS, {}, Budget(num_bytes=764))
    # Half of 1,528 bytes: 664 for 17 blocks of 80 bytes, 100 for 10 blocks of 20; 2 for each in
    # the map.
    assert plan.parameters["blocks"] == {"4": (664 - 34) // 80, "1": (100 - 20) // 20}
    assert plan.storage.serve == {"weights": 7 * 80 + 4 * 20, "buffers": 34 + 20}


def test_tables_stay_where_the_budget_holds_them():
    plan = Dedup().plan(SPECS, {}, Budget(ratio=1))
    assert plan.storage.serve == {"weights": 1528}
    assert [t.name for t in build(Dedup(), Budget(ratio=1)).plan.tables] == ["a", "b", "w"]


def test_blocks_of_large_tables_have_the_published_10_000_rows(published_specs):
    plan = Dedup().plan(published_specs("criteo"), {}, Budget(ratio=0.1))
    assert plan.is_feasible
    assert plan.parameters["block_rows"] == {"16": 10_000}
    assert 0.0998 < plan.ratio <= 0.1


def test_blocks_of_narrow_tables_grow_until_their_map_is_a_tenth_of_the_budget():
    spec = TableSpec(name="w", num_embeddings=5000, embedding_dim=1, feature_names=("f0",))
    plan = Dedup().plan([spec], {}, Budget(ratio=0.05))
    assert plan.is_feasible
    assert plan.storage.serve["buffers"] <= 100


def test_on_meta_it_has_the_bytes_of_the_plan():
    budget = Budget(ratio=0.5)
    named = {"optimizer": None, "seed": 1, "device": torch.device("meta")}
    tables = Dedup(block_rows=5).build(SPECS, {}, budget, **named)
    assert tables.storage().serve == Dedup(block_rows=5).plan(SPECS, {}, budget).storage.serve


def test_what_is_left_is_trained_on_from_the_trained_blocks(staged):
    context, method = staged(Dedup.stages, budget=Budget(ratio=0.5), epochs=1), Dedup(block_rows=2)
    seen, fit = {}, context.fit

    def noted(tables, *, stage, recipe=None):
        seen[stage] = (
            (tables, tables.state_dict()["embedding_bags.blocks_8.weight"].clone())
            if (stage == "finetune")
            else (tables, None)
        )
        return fit(tables, stage=stage, recipe=recipe)

    context.fit = noted
    tables = method.run(context)
    full, before = seen["train"][0], seen["finetune"][1]
    owner = method.owners(full, context.specs, context.budget)["blocks_8"]
    rows = torch.cat([full.table(f"f{i}") for i in range(3)]).detach().view(90, 2, 8)
    assert torch.equal(before.view(-1, 2, 8), rows[owner.unique()])
    assert not torch.equal(tables.table("blocks_8"), before)


def test_the_budget_is_kept_and_served(staged):
    budget = Budget(ratio=0.4)
    context = staged(Dedup.stages, budget=budget, epochs=2)
    tables = Dedup(block_rows=2).run(context)
    found, allowed = tables.storage().serve_bytes, budget.allowed_bytes(context.specs)
    # A block of each width is 64 and 8 bytes.
    assert allowed - 72 <= found <= allowed
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)


def test_without_a_budget_what_is_alike_is_merged(staged):
    context = staged(Dedup.stages, epochs=1)
    tables = Dedup(block_rows=2, tolerance=0.5).run(context)
    assert tables.storage().serve_bytes < tables.storage().full_bytes
    context = staged(Dedup.stages, epochs=1, folder="strict")
    tables = Dedup(block_rows=2, tolerance=0.0).run(context)
    assert tables.storage().serve_bytes == tables.storage().full_bytes


def test_at_half_of_the_bytes_it_is_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.5)
    context = staged(Dedup.stages, budget=budget, epochs=4)
    auc = context.evaluate(Dedup(block_rows=1).run(context))["val/auc"]
    assert auc > hashed_auc(budget, epochs=4)


# Calls: the fit of each stage, 12 updates and a score of each epoch, and a score after each fit.
@pytest.mark.parametrize("stop_at", [8, 22])
def test_a_run_killed_in_any_stage_ends_as_if_undisturbed(resumes, stop_at):
    resumes(Dedup(block_rows=2), stop_at, budget=Budget(ratio=0.4), epochs=1)


@pytest.mark.parametrize("wrong", [{"block_rows": 0}, {"tolerance": -1.0}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="Dedup: "):
        Dedup(**wrong)


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(ValueError, match="Dedup: the budget allows 50 bytes, but the least is"):
        build(Dedup(), Budget(num_bytes=50))
