"""DQRM: scales that follow the largest values, when they do, a fit, interruptions."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.dqrm import DQRM
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPEC = TableSpec(name="t", num_embeddings=20, embedding_dim=8, feature_names=("f",))


def build(**settings):
    return DQRM(**settings).build(
        [SPEC],
        {},
        None,
        optimizer=TableOptimizer(kind="sgd", learning_rate=1.0),
        seed=1,
        device=torch.device("cpu"),
    )


def features(ids):
    return KeyedJaggedTensor(
        keys=["f"], values=torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int32)
    )


def test_the_scale_makes_the_largest_value_the_largest_integer():
    tables = build()
    weight = tables.table("t")
    assert float(tables.roundings[0].steps()) == pytest.approx(float(weight.abs().max()) / 7)
    weight[3, 2] = -1.4
    tables.begin()
    assert float(tables.rows("f", torch.tensor([3]))[0, 2]) == pytest.approx(-1.4)
    assert float(tables.roundings[0].steps()) == pytest.approx(0.2)


def test_rows_are_read_rounded_and_kept_in_float32():
    tables = build()
    before = tables.table("t").clone()
    found, step = tables(features([3, 5])).values(), tables.roundings[0].steps()
    torch.testing.assert_close(found, (before[[3, 5]] / step).round() * step)
    assert torch.equal(tables.table("t"), before)


def test_values_beyond_the_range_get_their_gradients():
    tables = build()
    tables.table("t").mul_(3)
    before = tables.table("t").clone()
    grad = torch.randn(1, 8)
    tables(features([3])).values().backward(grad)
    torch.testing.assert_close(tables.table("t")[3:4], before[3:4] - grad)


def test_scales_are_refreshed_at_powers_of_two_and_then_regularly():
    method = DQRM(refresh_steps=10)
    assert [step for step in range(1, 42) if method.is_due(step)] == [1, 2, 4, 8, 10, 20, 30, 40]


def test_bytes_are_the_bits_and_a_scale():
    assert build().storage().serve == {"weights": 20 * 4, "scales": 4}


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"refresh_steps": 0}], ids=str)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="DQRM: "):
        DQRM(**wrong)


def test_a_fit_refreshes_scales_and_serves_what_it_scored(staged):
    context = staged(DQRM.stages, epochs=4)
    tables = DQRM(refresh_steps=12).run(context)
    rounding, place = tables.rounding_of("f0")
    # The best state is that of the end of an epoch, when the scales were measured.
    largest = tables.table("f0").abs().max() / 7
    assert float(rounding.steps()[place]) == pytest.approx(float(largest))
    assert context.evaluate(tables)["val/auc"] > 0.8
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)


def test_a_killed_run_ends_as_if_undisturbed(resumes):
    resumes(DQRM(refresh_steps=5), 20, epochs=2)
