"""CERP: sums of two rows, the penalty on them, masks within the budget, interruptions."""

import pytest
import torch

from recemb.methods.cerp import Cerp
from recemb.methods.cerp_tables import Buckets, ComposedThreshold
from recemb.methods.pep import SoftThresholds
from recemb.tables.layout import group_tables
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

CPU = torch.device("cpu")
SPECS = [
    TableSpec(name="a", num_embeddings=1000, embedding_dim=8, feature_names=("f0",)),
    TableSpec(name="b", num_embeddings=50, embedding_dim=8, feature_names=("f1",)),
    TableSpec(name="w", num_embeddings=1000, embedding_dim=1, feature_names=("f0",)),
]


def build(budget=None, **settings):
    return Cerp(**settings).build(SPECS, {}, budget, optimizer=None, seed=1, device=CPU)


@pytest.mark.parametrize("modulus", [32, 100, 400])
def test_every_id_has_a_pair_of_rows_of_its_own(modulus):
    its = Buckets(spec=SPECS[0], modulus=modulus)
    ids = torch.arange(1000)
    pairs = torch.stack([ids % modulus, ids // its.divisor])
    assert torch.unique(pairs, dim=1).shape[1] == 1000
    assert its.parts[1].num_embeddings == int(pairs[1].max()) + 1


def test_a_vector_is_the_sum_of_its_two_rows():
    tables = build()
    modulus = tables.buckets[0].modulus
    assert modulus == 250
    ids = torch.tensor([0, 3, 251, 999])
    expected = tables.table("a.p")[ids % 250] + tables.table("a.q")[ids // 4]
    masked = tables.served("a.p")[ids % 250] + tables.served("a.q")[ids // 4]
    torch.testing.assert_close(tables.rows("f0@a", ids), masked)
    assert (tables.rows("f0@a", ids) == expected).any()


def test_small_tables_keep_a_row_for_each_id():
    assert [its.modulus > 0 for its in build().buckets] == [True, False, True]


@pytest.mark.parametrize("ratio", [0.4, 0.2, 0.1])
def test_rows_take_what_the_budget_holds_at_the_density(ratio):
    budget = Budget(ratio=ratio)
    parts = [part for its in Cerp().buckets(SPECS, budget) for part in its.parts]
    least = [part for its in Cerp().buckets(SPECS, Budget(num_bytes=1)) for part in its.parts]
    dense, floor = (sum(part.full_bytes for part in its) for its in (parts, least))
    assert dense <= max(2 * budget.allowed_bytes(SPECS), floor)
    assert build(budget).storage().serve_bytes <= budget.allowed_bytes(SPECS)


def test_the_penalty_is_over_the_distinct_sums_of_a_batch():
    buckets = [Buckets(spec=SPECS[0], modulus=40)]
    plan = build(exact_below=0, density=1.0).plan
    group = next(g for g in group_tables(plan) if g.width == 8)
    soft = ComposedThreshold(
        group, SoftThresholds(), pairs=[("a.p", "a.q")], gamma=0.5, eta=3.0
    ).train()
    assert buckets[0].parts[0].name == "a.p"
    names = [table.name for table in group.tables]
    p, q = names.index("a.p"), names.index("a.q")
    # Ids 0, 1, 0: the sums of rows (5, 9) and (6, 9), the first of them twice.
    rows = torch.tensor([5, 6, 5]) + group.first_rows[p]
    others = torch.tensor([9, 9, 9]) + group.first_rows[q]
    vectors = torch.randn(6, 8)
    vectors[2], vectors[4], vectors[5] = vectors[0], vectors[3], vectors[3]
    vectors.requires_grad_(True)
    found = soft(vectors, torch.cat([rows, others]), torch.tensor([p] * 3 + [q] * 3))
    sums = torch.stack([found[0] + found[3], found[1] + found[4]])
    expected = -0.5 * torch.tanh(3.0 * sums).square().sum()
    torch.testing.assert_close(soft.penalty(), expected)
    # It is asked for once a pass.
    assert float(soft.penalty()) == 0.0


def test_no_penalty_is_left_by_an_evaluation():
    group = next(g for g in group_tables(build().plan) if g.width == 8)
    soft = ComposedThreshold(group, SoftThresholds(), pairs=[], gamma=0.5, eta=3.0).eval()
    soft(torch.randn(1, 8), torch.zeros(1).long(), torch.zeros(1).long())
    assert float(soft.penalty()) == 0.0


def test_served_tables_give_the_same_bits_in_the_bytes_they_say():
    tables = build(Budget(ratio=0.1)).eval()
    frozen = tables.freeze()
    for key, (spec, _) in tables.outputs.items():
        ids = torch.arange(spec.num_embeddings)
        assert torch.equal(frozen.rows(key, ids), tables.rows(key, ids))
    stored = sum(t.nbytes for t in frozen.state_dict().values())
    assert stored == tables.storage().serve_bytes


def test_planned_tables_say_their_bytes_without_memory():
    budget = Budget(ratio=0.1)
    named = {"optimizer": None, "seed": 1}
    planned = Cerp().build(SPECS, {}, budget, device=torch.device("meta"), **named)
    assert planned.storage().serve == build(budget).storage().serve


@pytest.mark.parametrize(
    "wrong",
    [{"density": 0.0}, {"gamma": -1.0}, {"gamma_decay": 2.0}, {"search_epochs": 0}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="CERP: "):
        Cerp(**wrong)


# Thresholds of small batches need larger steps to reach the budget in a few epochs.
FAST = {"initial": -4.0, "learning_rate": 0.2, "weight_decay": 1e-2}


def test_a_search_prunes_to_the_budget_and_gamma_falls(staged, recwarn):
    method = Cerp(exact_below=0, thresholds=FAST)
    budget = Budget(ratio=0.3)
    context = staged(method.stages, budget=budget, epochs=4)
    seen = []
    fit = context.fit

    def noted(tables, *, stage, recipe=None):
        found = fit(tables, stage=stage, recipe=recipe)
        if stage == "search":
            seen.extend(float(soft.gamma) for soft in tables.thresholds())
        return found

    context.fit = noted
    tables = method.run(context)
    assert not [w for w in recwarn if "CERP" in str(w.message)]
    assert tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)
    assert seen[0] < 1e-4
    assert context.evaluate(tables)["val/auc"] > 0.55


def test_a_search_that_ends_too_early_says_so_and_keeps_the_budget(staged):
    method, budget = Cerp(exact_below=0), Budget(ratio=0.3)
    context = staged(method.stages, budget=budget, epochs=1)
    with pytest.warns(UserWarning, match="Cerp: the search ended before"):
        tables = method.run(context)
    assert tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)


@pytest.mark.parametrize("stop_at", [8, 22])
def test_a_run_killed_in_either_stage_ends_as_if_undisturbed(stop_at, resumes):
    method = Cerp(exact_below=0, thresholds={**FAST, "initial": -2.0})
    resumes(method, stop_at, budget=Budget(ratio=0.5), epochs=1)
