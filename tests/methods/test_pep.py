"""PEP: soft thresholds and their gradients, what ends the search, retraining from the start."""

import math

import pytest
import torch

from recemb.methods.pep import PEP, Scope, SoftThreshold, SoftThresholds
from recemb.methods.pruned import PrunedTables
from recemb.tables.full import full_plan
from recemb.tables.layout import group_tables
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name=name, num_embeddings=n, embedding_dim=3, feature_names=(f"f.{name}",))
    for name, n in (("a", 5), ("b", 4))
]
GROUP = group_tables(full_plan(SPECS))[0]
# Batches of 100 have larger gradients than the paper's: only a larger decay raises thresholds here.
QUICK = {"learning_rate": 0.1, "initial": -5.0, "weight_decay": 1e-2}


def soft(scope, initial=0.0):
    return SoftThreshold(GROUP, SoftThresholds(scope=scope, initial=initial)).double()


SHAPES = {
    "global": (1, 1),
    "dimension": (1, 3),
    "field": (2, 1),
    "field_dimension": (2, 3),
    "feature": (9, 1),
    "feature_dimension": (9, 3),
}


@pytest.mark.parametrize("scope", SHAPES)
def test_a_scope_has_the_paper_s_shape(scope):
    assert set(SHAPES) == set(Scope.__args__)
    assert soft(scope).s.shape == SHAPES[scope]


@pytest.mark.parametrize("scope", SHAPES)
def test_values_are_shrunk_by_the_sigmoid_of_their_threshold(scope):
    transform = soft(scope)
    with torch.no_grad():
        transform.s.copy_(torch.randn(SHAPES[scope]))
    rows, tables = torch.tensor([0, 4, 5, 8, 2]), torch.tensor([0, 0, 1, 1, 0])
    vectors = torch.randn(5, 3, dtype=torch.float64)
    found = transform(vectors, rows, tables).detach()
    for i in range(5):
        first = {"feature": rows, "field": tables}.get(scope.split("_")[0], rows * 0)[i]
        for d in range(3):
            s = float(transform.s.detach()[first, d if scope.endswith("dimension") else 0])
            v = float(vectors[i, d])
            size = max(0.0, abs(v) - 1 / (1 + math.exp(-s)))
            assert float(found[i, d]) == pytest.approx(math.copysign(size, v), abs=1e-7)


@pytest.mark.parametrize("scope", SHAPES)
def test_gradients_reach_values_and_thresholds(scope):
    transform = soft(scope)
    rows, tables = torch.tensor([0, 5, 5]), torch.tensor([0, 1, 1])
    # Away from the kink at sigmoid(0) = 0.5: twice above, once below it.
    vectors = torch.tensor([[0.9, -1.4, 0.1]] * 3, dtype=torch.float64, requires_grad=True)

    def shrunk(values, s):
        return torch.func.functional_call(transform, {"s": s}, (values, rows, tables))

    assert torch.autograd.gradcheck(shrunk, (vectors, transform.s))
    shrunk(vectors, transform.s).sum().backward()
    assert vectors.grad.tolist() == [[1, 1, 0]] * 3


def test_words_and_numbers_out_of_range_are_refused():
    for wrong in ({"scope": "row"}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match="SoftThresholds: "):
            SoftThresholds(**wrong)
    for named in ({"retrain_from": "search"}, {"search_epochs": 0}):
        with pytest.raises(ValueError, match="PEP: "):
            PEP(**named)


def test_the_search_ends_when_the_budget_is_reached_and_its_mask_fills_it(staged):
    budget = Budget(ratio=0.3)
    context = staged(PEP.stages, budget=budget, epochs=1)
    epochs = []
    fit = context.fit

    def noted(tables, **named):
        found = fit(tables, **named)
        epochs.append(context.fitted.progress.epoch)
        return found

    context.fit = noted
    tables = PEP(thresholds=QUICK, search_epochs=40).run(context)
    assert 1 <= epochs[0] < 40
    allowed = budget.allowed_bytes(context.specs)
    assert allowed - 100 < tables.storage().serve_bytes <= allowed
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)


def test_at_minus_150_nothing_is_pruned_without_weight_decay(staged):
    context = staged(PEP.stages, budget=Budget(ratio=0.3))
    method = PEP(thresholds={"initial": -150.0, "learning_rate": 1.0, "weight_decay": 0.0})
    search = PrunedTables(
        context.specs,
        transform=method._soft,
        optimizer=context.optimizer,
        seed=1,
        device=context.device,
    )
    context.fit(search, stage="search", recipe=method._search(search, context))
    assert all(bool((t.s == -150).all()) for t in search.transforms.all())


def test_an_unfinished_search_keeps_the_largest_margins_and_says_so(staged):
    budget = Budget(ratio=0.3)
    context = staged(PEP.stages, budget=budget, epochs=1)
    with pytest.warns(UserWarning, match="the search ended before the thresholds had pruned"):
        tables = PEP().run(context)
    assert tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)


@pytest.mark.parametrize("retrain_from", ["init", "fresh"])
def test_retraining_begins_with_the_initial_weights_of_the_values_that_stay(staged, retrain_from):
    context = staged(PEP.stages, budget=Budget(ratio=0.3), epochs=1)
    begun = []
    fit = context.fit

    def noted(tables, **named):
        begun.append({s.name: tables.served(s.name).clone() for s in context.specs})
        begun.append({s.name: tables.table(s.name).clone() for s in context.specs})
        return fit(tables, **named)

    context.fit = noted
    tables = PEP(thresholds=QUICK, search_epochs=12, retrain_from=retrain_from).run(context)
    _, first, served, _ = begun
    for name, weight in served.items():
        same = torch.equal(weight, torch.where(weight != 0, first[name], 0))
        assert same == (retrain_from == "init")
        assert 0 < int((weight == 0).sum()) < weight.numel()
        # The mask holds through the retraining, which moves the rest.
        assert torch.equal(tables.served(name) == 0, weight == 0)
        assert not torch.equal(tables.served(name), weight)


def test_without_a_budget_the_mask_is_what_the_search_leaves(staged):
    context = staged(PEP.stages, epochs=1)
    tables = PEP(thresholds=QUICK, search_epochs=4).run(context)
    vectors = torch.cat([tables.served(s.name) for s in context.specs if s.embedding_dim > 1])
    assert 0 < int((vectors == 0).sum()) < vectors.numel()


def test_at_a_quarter_of_the_bytes_it_is_well_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.25)
    context = staged(PEP.stages, budget=budget, epochs=5)
    tables = PEP(thresholds=QUICK, search_epochs=12).run(context)
    auc = context.evaluate(tables)["val/auc"]
    assert auc > 0.8
    assert auc > hashed_auc(budget, epochs=5) + 0.02


# Calls: the fit, then 12 updates and a score for each of two epochs, twice.
@pytest.mark.parametrize("stop_at", [20, 34])
def test_a_run_killed_in_any_stage_ends_as_if_undisturbed(resumes, stop_at):
    method = PEP(thresholds=QUICK, search_epochs=2)
    resumes(method, stop_at, budget=Budget(ratio=0.9), epochs=2)
