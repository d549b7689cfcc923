"""Quantised vectors: which centroid, with which gradient, in training and in serving."""

import pytest
import torch
from torch import nn

from recemb.methods.codes import CodeForm
from recemb.methods.quantizer import Quantization, Quantizer
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import group_tables
from recemb.tables.spec import TableSpec

# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
ROWS, PARTS, CENTROIDS, WIDTH = 60, 3, 8, 6
SPECS = [
    TableSpec(name="plain", num_embeddings=5, embedding_dim=WIDTH, feature_names=("f0",)),
    TableSpec(name="coded", num_embeddings=ROWS, embedding_dim=WIDTH, feature_names=("f1",)),
]
FIRST = 5


def quantizer(variant, *, tail=None, **changes):
    form = CodeForm(
        num_rows=ROWS,
        width=WIDTH,
        num_parts=PARTS,
        num_centroids=CENTROIDS,
        num_head=None if tail is None else 10,
        tail_centroids=tail,
    )
    heads = {} if tail is None else {"coded": torch.arange(ROWS) < 10}
    made = Quantizer(
        group_tables(full_plan(SPECS))[0],
        forms={"coded": form},
        quantization=Quantization(variant=variant, **changes),
        heads=heads,
    )
    rule = Initial(distribution="normal", spread=1.0)
    made.draw(1, {"coded": rule}, lambda table: queries())
    return made


def queries(*, requires_grad=False):
    drawn = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    return drawn.requires_grad_(requires_grad)


def quantise(made, vectors):
    count = vectors.shape[0]
    return made(vectors, torch.arange(count) + FIRST, torch.ones(count, dtype=torch.long))


def part(tensor, p):
    width = WIDTH // PARTS
    return tensor[:, p * width : (p + 1) * width]


@pytest.mark.parametrize("is_training", [True, False])
def test_vq_takes_the_nearest_centroid_of_each_part(is_training):
    made = quantizer("vq").train(is_training)
    found, books = quantise(made, queries()), made.codebooks("coded")
    for p in range(PARTS):
        nearest = torch.cdist(part(queries(), p), books[p]).argmin(dim=1)
        assert torch.equal(part(found, p), books[p, nearest])


@pytest.mark.parametrize("is_training", [True, False])
def test_sx_takes_the_value_beside_the_largest_product_of_the_keys(is_training):
    made = quantizer("sx", batch_norm=False).train(is_training)
    found = quantise(made, queries())
    for p in range(PARTS):
        largest = (part(queries(), p) @ made.keys_1[p].T).argmax(dim=1)
        assert torch.equal(part(found, p), made.values_1[p, largest])


def test_vq_hands_gradients_to_the_queries_as_they_are():
    vectors = queries(requires_grad=True)
    grad = torch.randn(ROWS, WIDTH)
    quantise(quantizer("vq"), vectors).backward(grad)
    assert torch.equal(vectors.grad, grad)


@pytest.mark.parametrize("times", [1, 3])
def test_the_penalty_of_vq_is_the_mean_square_distance_to_all_queries_since_the_last(times):
    made = quantizer("vq", codebook_weight=0.5)
    books = made.codebooks("coded")
    chunks = queries().chunk(times)
    found = torch.cat([quantise(made, chunk) for chunk in chunks])
    codes = [torch.cdist(part(queries(), p), books[p]).argmin(dim=1) for p in range(PARTS)]
    chosen = torch.cat([books[p, codes[p]] for p in range(PARTS)], dim=1)
    assert torch.equal(found, chosen)
    expected = 0.5 * (chosen - queries()).square().mean()
    penalty = made.penalty()
    torch.testing.assert_close(penalty, expected, **ROUNDING)
    grads = [torch.autograd.grad(loss, made.keys_1)[0] for loss in (penalty, expected)]
    torch.testing.assert_close(*grads, **ROUNDING)
    assert float(made.penalty()) == 0.0


def test_evaluation_adds_nothing_to_the_penalty():
    made = quantizer("vq").eval()
    quantise(made, queries())
    assert float(made.penalty()) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_sx_is_differentiated_as_the_mean_by_softmax(temperature):
    made = quantizer("sx", batch_norm=False, temperature=temperature)
    grad = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
    vectors, again = queries(requires_grad=True), queries(requires_grad=True)
    quantise(made, vectors).backward(grad)
    # The paper's (p - sg(p - one_hot)) V; its derivative by V sees the one-hot vector.
    outputs = []
    for p in range(PARTS):
        chances = torch.softmax(part(again, p) @ made.keys_1[p].T / temperature, dim=1)
        outputs.append((chances, chances @ made.values_1[p].detach()))
    torch.cat([mean for _, mean in outputs], dim=1).backward(grad)
    torch.testing.assert_close(vectors.grad, again.grad, **ROUNDING)
    for p, (chances, _) in enumerate(outputs):
        chosen = nn.functional.one_hot(chances.argmax(dim=1), CENTROIDS).float()
        torch.testing.assert_close(made.values_1.grad[p], chosen.T @ part(grad, p), **ROUNDING)


def test_training_normalises_scores_as_a_batch_norm_layer_of_each_part_and_centroid():
    made = quantizer("sx")
    layer = nn.BatchNorm1d(PARTS * CENTROIDS, affine=False, eps=1e-20)
    layer.running_mean.copy_(made.mean_1.flatten())
    layer.running_var.copy_(made.variance_1.flatten())
    scores = torch.stack([part(queries(), p) @ made.keys_1[p].T for p in range(PARTS)], dim=1)
    normal = layer(scores.flatten(1)).view(ROWS, PARTS, CENTROIDS)
    found = quantise(made, queries())
    for p in range(PARTS):
        assert torch.equal(part(found, p), made.values_1[p, normal[:, p].argmax(dim=1)])
    torch.testing.assert_close(made.mean_1.flatten(), layer.running_mean, **ROUNDING)
    torch.testing.assert_close(made.variance_1.flatten(), layer.running_var, **ROUNDING)
    serving = (scores - made.mean_1) / made.variance_1.sqrt()
    assert torch.equal(made.codes("coded", queries()), serving.argmax(dim=2))


def test_statistics_begin_with_those_of_the_initial_queries():
    made = quantizer("sx")
    scores = torch.stack([part(queries(), p) @ made.keys_1[p].T for p in range(PARTS)], dim=1)
    torch.testing.assert_close(made.mean_1, scores.mean(dim=0), **ROUNDING)
    torch.testing.assert_close(made.variance_1, scores.var(dim=0), **ROUNDING)


@pytest.mark.parametrize("variant", ["vq", "sx"])
def test_a_single_row_in_training_takes_the_running_statistics(variant):
    made = quantizer(variant, batch_norm=True)
    found = quantise(made, queries()[:1])
    assert torch.equal(found, quantise(made.eval(), queries()[:1]))


@pytest.mark.parametrize("variant", ["vq", "sx"])
def test_a_row_s_code_does_not_depend_on_the_rows_beside_it(variant):
    made = quantizer(variant).eval()
    together = quantise(made, queries())
    for i in range(ROWS):
        row, table = torch.tensor([i + FIRST]), torch.tensor([1])
        assert torch.equal(made(queries()[i : i + 1], row, table)[0], together[i])


@pytest.mark.parametrize("variant", ["vq", "sx"])
@pytest.mark.parametrize("is_training", [True, False])
def test_rows_of_the_tail_take_the_first_centroids_only(variant, is_training):
    made = quantizer(variant, tail=2).train(is_training)
    found, books = quantise(made, queries()), made.codebooks("coded")
    codes = torch.stack(
        [torch.cdist(part(found, p), books[p]).argmin(dim=1) for p in range(PARTS)], dim=1
    )
    assert int(codes[10:].max()) == 1
    assert int(codes[:10].max()) > 1
    if not is_training:
        assert torch.equal(made.codes("coded", queries()), codes)


def test_rows_of_other_tables_pass_and_absent_rows_stay_zero():
    made = quantizer("vq")
    vectors = torch.cat([queries()[:2], torch.zeros(1, WIDTH), queries()[:1]])
    rows, tables = torch.tensor([0, FIRST, -1, 1]), torch.tensor([0, 1, 1, 0])
    found = made(vectors, rows, tables)
    assert torch.equal(found[[0, 3]], vectors[[0, 3]])
    assert not torch.equal(found[1], vectors[1])
    assert not found[2].any()


@pytest.mark.parametrize(
    "wrong", [{"variant": "rq"}, {"temperature": 0.0}, {"codebook_weight": -1.0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="quantization: "):
        Quantization(**wrong)
