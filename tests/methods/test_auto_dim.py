"""AutoDim: the mixture of candidates, the bilevel step, choices in a budget, interruptions."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from recemb.methods.auto_dim import AutoDim, mixes_of
from recemb.methods.candidate_widths import CandidateWidths, best_widths
from recemb.tables.full import full_plan
from recemb.tables.layout import group_tables
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

CPU = torch.device("cpu")
SPECS = [
    TableSpec(name="a", num_embeddings=400, embedding_dim=8, feature_names=("f0",)),
    TableSpec(name="b", num_embeddings=90, embedding_dim=8, feature_names=("f1",)),
    TableSpec(name="w", num_embeddings=400, embedding_dim=1, feature_names=("f0",)),
]


def mix_of(widths=(2, 4, 8)):
    return CandidateWidths(group_tables(full_plan(SPECS))[0], widths, seed=0)


def test_candidates_are_powers_of_two_up_to_the_table_s_width():
    assert AutoDim().widths(16) == [2, 4, 8, 16]
    assert AutoDim().widths(10) == [2, 4, 8, 10]
    assert AutoDim().widths(1) == [1]
    assert AutoDim(candidates=[6, 3, 99]).widths(8) == [3, 6, 8]


@pytest.mark.parametrize(
    "wrong",
    [{"candidates": [0, 2]}, {"candidates": []}, {"search_epochs": 0}, {"learning_rate": -1.0}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="AutoDim: "):
        AutoDim(**wrong)


def test_vectors_are_mixed_from_normalised_prefixes_field_by_field():
    mix = mix_of()
    mix.alpha.copy_(torch.randn(2, 3))
    vectors, tables = torch.randn(30, 8), torch.arange(30) % 2
    torch.manual_seed(5)
    chances = mix.chances()
    torch.manual_seed(5)
    found = mix(vectors, torch.arange(30), tables)
    for place in range(2):
        its = vectors[tables == place]
        expected = torch.zeros_like(its)
        for c, width in enumerate((2, 4, 8)):
            projected = its[:, :width] @ mix.projections[c][place]
            expected += chances[place, c] * F.batch_norm(projected, None, None, training=True)
        torch.testing.assert_close(found[tables == place], expected)


def test_without_noise_chances_are_the_softmax_at_the_temperature():
    mix = mix_of().eval()
    mix.alpha.copy_(torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]))
    mix.temperature.fill_(0.5)
    torch.testing.assert_close(mix.chances(), torch.softmax(mix.alpha / 0.5, dim=1))


def test_noisy_choices_at_a_low_temperature_follow_the_chances():
    mix = mix_of().train()
    mix.alpha.copy_(torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    mix.temperature.fill_(0.01)
    picks = torch.stack([mix.chances().argmax(dim=1) for _ in range(2000)])
    share = torch.bincount(picks[:, 0], minlength=3) / 2000
    # Gumbel's maximum: the chance of a choice is its softmax; 3 sigma of 2000 draws is 0.034.
    torch.testing.assert_close(share, torch.softmax(mix.alpha[0], 0), atol=0.034, rtol=0)


def test_one_row_alone_and_a_field_without_rows_need_no_batch():
    mix = mix_of().train()
    found = mix(torch.randn(1, 8), torch.zeros(1).long(), torch.ones(1).long())
    assert found.isfinite().all()


class OneLoss:
    """The part of a fit that a step of alpha asks: a fixed batch and sum(w * e)."""

    def __init__(self, tables, features, weights):
        self.tables, self.features, self.weights = tables, features, weights

    def next_validation_batch(self):
        return self.features

    def loss(self, features):
        return (self.tables(features).values() * self.weights).sum()


def test_a_step_moves_alpha_down_its_gradient_and_nothing_else(staged):
    context = staged(AutoDim.stages)
    method = AutoDim(learning_rate=0.5)
    search = method.search_tables(context.specs, optimizer=context.optimizer, seed=1, device=CPU)
    (mix,) = mixes_of(search)
    features = next(context.prepared.batches("train", batch_size=64)).features
    weights = torch.randn(64, sum(search.embedding_dims.values()))
    updates = OneLoss(search, features, weights)
    before = {key: value.clone() for key, value in search.state_dict().items()}
    torch.manual_seed(3)
    method.step_alpha(search, updates)
    after = search.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert len(changed) == 1
    assert changed[0].endswith("alpha")
    # The same noise at alpha +- h gives the derivative by differences.
    moved = mix.alpha.clone()
    base = torch.zeros_like(moved)
    for place, c in itertools.product(range(2), range(3)):
        values = []
        for sign in (1, -1):
            mix.alpha.copy_(base)
            mix.alpha[place, c] += sign * 1e-2
            torch.manual_seed(3)
            with torch.no_grad():
                values.append(float(updates.loss(features)))
        slope = (values[0] - values[1]) / 2e-2
        assert float(moved[place, c]) == pytest.approx(-0.5 * slope, rel=2e-2, abs=1e-2)


def brute_force(preferences, costs, allowed):
    names = list(preferences)
    best = None
    for choice in itertools.product(*(range(len(preferences[n])) for n in names)):
        cost = sum(costs[n][c] for n, c in zip(names, choice, strict=True))
        value = sum(preferences[n][c] for n, c in zip(names, choice, strict=True))
        if cost <= allowed and (best is None or value > best[0]):
            best = (value, dict(zip(names, choice, strict=True)))
    return best[1]


@pytest.mark.parametrize("allowed", [900, 1300, 2500, 60_000])
def test_widths_within_a_budget_are_the_best_of_all_choices(allowed):
    generator = torch.Generator().manual_seed(allowed)
    preferences, costs = {}, {}
    for f in range(5):
        size = int(torch.randint(20, 100, (), generator=generator))
        preferences[f"t{f}"] = torch.randn(4, generator=generator).tolist()
        costs[f"t{f}"] = [size * d for d in (2, 4, 8, 16)]
    assert best_widths(preferences, costs, allowed) == brute_force(preferences, costs, allowed)


def test_without_a_budget_each_field_takes_what_it_prefers():
    assert best_widths({"a": [0.1, 0.3], "b": [2.0, 1.0]}, {}, None) == {"a": 1, "b": 0}


def test_the_cheapest_are_taken_where_nothing_else_fits():
    assert best_widths({"a": [0.0, 9.0]}, {"a": [50, 100]}, 10) == {"a": 0}


@pytest.mark.parametrize("ratio", [0.95, 0.6, 0.45])
def test_what_a_search_finds_keeps_the_budget(ratio):
    method, budget = AutoDim(), Budget(ratio=ratio)
    search = method.search_tables(SPECS, optimizer=TableOptimizer(), seed=0, device=CPU)
    (mix,) = mixes_of(search)
    mix.alpha.copy_(torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]))
    widths = method.found(search, budget)
    num_bytes = sum(4 * s.num_embeddings * widths[s.name] for s in SPECS)
    num_bytes += sum(4 * 8 * d for d in widths.values() if 1 < d < 8)
    assert num_bytes <= budget.allowed_bytes(SPECS)
    assert widths["w"] == 1
    # Table b prefers 4, which is cheap enough for every one of these budgets.
    assert widths["b"] == 4
    assert widths["a"] == {0.95: 8, 0.6: 4, 0.45: 2}[ratio]


def test_two_stages_leave_tables_of_the_widths_found_within_the_budget(staged):
    context = staged(AutoDim.stages, budget=Budget(ratio=0.6), epochs=2)
    tables = AutoDim(learning_rate=0.05).run(context)
    assert tables.storage().serve_bytes <= 0.6 * tables.storage().full_bytes
    assert not tables.transforms.by_group
    assert context.evaluate(tables)["val/auc"] > 0.6


# A fit of 12 steps of alpha and 12 of weights, and a score, then a fit of 12 updates.
@pytest.mark.parametrize("stop_at", [12, 33])
def test_a_run_killed_in_either_stage_ends_as_if_undisturbed(stop_at, resumes):
    resumes(AutoDim(learning_rate=0.05), stop_at, budget=Budget(ratio=0.6), epochs=1)
