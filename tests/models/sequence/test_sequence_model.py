"""What holds for the models that search by products: TWIN, DARE and TWIN-4E."""

import math

import pytest
import torch
from torch import Tensor

from recemb.models.sequence.dare import DARE
from recemb.models.sequence.twin import TWIN
from recemb.models.sequence.twin_4e import TWIN4E

KINDS = [TWIN, DARE, TWIN4E]
every_kind = pytest.mark.parametrize("kind", KINDS)
LENGTHS = [9, 3, 0, 6, 1, 4]
K = 4
# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def grow_apart(tables) -> None:
    """Give every table values of its own."""
    for number, spec in enumerate(tables.specs):
        table = tables.table(spec.name).detach()
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(number)))


def slow_features(batch, tables, parts, example: int) -> Tensor:
    """Return what the head reads, by loops over one example's behaviours."""
    behaviours = {p.target: batch.features[p.history].to_dense()[example] for p in parts}
    target = {p.target: batch.features[p.target].to_dense()[example] for p in parts}

    def row(key: str, ids: Tensor) -> Tensor:
        return tables.rows(key, ids.view(-1)).detach().double()[0]

    scores = []
    for place in range(len(behaviours["item"])):
        what, when, what_dim, when_dim = 0.0, 0.0, 0, 0
        for p in parts:
            left = row(p.attention.history, behaviours[p.target][place])
            product = float(left @ row(p.attention.target, target[p.target]))
            if p.is_time:
                when, when_dim = when + product, when_dim + len(left)
            else:
                what, what_dim = what + product, what_dim + len(left)
        scores.append(what / math.sqrt(what_dim) + when / math.sqrt(when_dim))
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:K]
    total = sum(math.exp(scores[i]) for i in best)
    own = torch.cat([row(p.representation.target, target[p.target]) for p in parts])
    sums = torch.zeros_like(own)
    for i in best:
        vectors = [row(p.representation.history, behaviours[p.target][i]) for p in parts]
        sums += math.exp(scores[i]) / total * torch.cat(vectors)
    return torch.cat([own, sums, own * sums])


@every_kind
def test_the_head_reads_target_sum_and_product_of_the_k_best(kind, make, draw) -> None:
    model, tables = make(kind, top_k=K)
    grow_apart(tables)
    batch, seen = draw(LENGTHS), []
    model.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.eval().score(batch, tables)
    expected = [slow_features(batch, tables, model.parts, e) for e in range(len(LENGTHS))]
    torch.testing.assert_close(seen[0].double(), torch.stack(expected), **ROUNDING)


@every_kind
def test_an_example_scores_alone_as_it_does_among_longer_ones(kind, make, draw) -> None:
    model, tables = make(kind)
    grow_apart(tables)
    batch = draw(LENGTHS)
    together = model.eval().score(batch, tables)
    for e, length in enumerate(LENGTHS):
        alone = draw([length])
        for name in batch.features.keys():  # noqa: SIM118
            its = batch.features[name].to_dense()[e]
            alone.features[name].values().copy_(its)
        torch.testing.assert_close(model.score(alone, tables)[0], together[e], **ROUNDING)


@every_kind
def test_with_k_behaviours_or_fewer_all_of_them_are_found(kind, make, draw) -> None:
    model, tables = make(kind, top_k=K)
    inputs = model.inputs(draw([4, 2, 0, 3]), tables)
    found = model.weights(inputs)
    assert torch.equal(found.retrieved, found.full)
    assert torch.equal(found.retrieved > 0, inputs.is_valid)


@every_kind
def test_weights_sum_to_one_unless_there_is_no_behaviour(kind, make, draw) -> None:
    model, tables = make(kind)
    for weights in model.weights(model.inputs(draw(LENGTHS), tables)):
        expected = torch.tensor([float(n > 0) for n in LENGTHS])
        torch.testing.assert_close(weights.sum(1), expected)


@every_kind
def test_gradients_are_finite_where_a_history_is_empty(kind, make, draw) -> None:
    model, tables = make(kind)
    batch = draw(LENGTHS)
    model.loss_sum(model.inputs(batch, tables), batch.labels).backward()
    grads = [p.grad for p in (*model.parameters(), *tables.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


@every_kind
def test_a_batch_without_any_behaviour_is_scored(kind, make, draw) -> None:
    model, tables = make(kind)
    assert model.eval().score(draw([0, 0]), tables).shape == (2,)


def test_the_loss_adds_both_heads_and_the_penalty(make, draw) -> None:
    model, tables = make(TWIN, l2=0.1)
    batch = draw(LENGTHS)
    model.eval()
    inputs = model.inputs(batch, tables)
    history, target = model.representations(inputs)
    expected = torch.zeros(())
    for head, weights in zip(
        (model.head, model.auxiliary_head), model.weights(inputs), strict=True
    ):
        sums = (weights.unsqueeze(2) * history).sum(1)
        chance = torch.sigmoid(head(model.features(sums, target, inputs.context)))
        right = torch.where(batch.labels == 1, chance, 1 - chance)
        expected = expected - right.log().sum()
    squares = sum(p.square().sum() for n, p in model.named_parameters() if "bias" not in n)
    expected = expected + len(batch) * 0.1 * squares
    torch.testing.assert_close(model.loss_sum(inputs, batch.labels), expected)


def test_without_auxiliary_units_there_is_one_head(make, draw) -> None:
    model, tables = make(TWIN, auxiliary_units=None)
    batch = draw([5, 6])
    model.eval()
    inputs = model.inputs(batch, tables)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        model.logits_of(inputs), batch.labels, reduction="sum"
    )
    torch.testing.assert_close(model.loss_sum(inputs, batch.labels), expected)


def test_the_auxiliary_loss_gives_gradients_to_behaviours_that_were_not_found(make, draw) -> None:
    touched = []
    for units in (None, [8]):
        model, tables = make(DARE, top_k=1, auxiliary_units=units)
        batch = draw([9])
        model.eval().loss_sum(model.inputs(batch, tables), batch.labels).backward()
        touched.append(sum(int((p.grad != 0).any(1).sum()) for p in tables.parameters()))
    assert touched[1] > touched[0]


def test_parameters_are_drawn_with_the_deviation_that_is_asked_for(make) -> None:
    model, _ = make(DARE, init_std=0.01, hidden_units=[300], auxiliary_units=[300])
    for name, p in model.named_parameters():
        if "bias" in name:
            assert bool((p == 0).all())
        elif p.numel() > 1000:
            torch.testing.assert_close(float(p.detach().std()), 0.01, rtol=0.1, atol=0.0)
        else:
            assert float(p.detach().abs().max()) < 0.06


def test_without_the_product_the_head_is_narrower_by_one_vector(make) -> None:
    widths = [make(TWIN, target_aware=flag)[0].features_width for flag in (True, False)]
    assert widths == [3 * 12, 2 * 12]
