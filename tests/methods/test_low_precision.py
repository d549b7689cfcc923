from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recemb.methods.low_precision import LowPrecision
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "embedding"
SPEC = TableSpec(name="t", num_embeddings=3000, embedding_dim=16, feature_names=("f",))


def build(method):
    return method.build(
        [SPEC], {}, None, optimizer=TableOptimizer(), seed=1, device=torch.device("cpu")
    )


@pytest.mark.parametrize(("bits", "ratio"), [(8, 0.25), (16, 0.5)])
def test_bytes_are_the_bits_share_and_nothing_else(bits, ratio):
    plan = LowPrecision(bits=bits).plan([SPEC], {}, None)
    assert plan.ratio == ratio


def test_a_budget_below_its_only_size_is_refused_with_that_size():
    plan = LowPrecision(bits=8).plan([SPEC], {}, Budget(ratio=0.2))
    assert not plan.is_feasible
    assert plan.ratio == 0.25


@pytest.mark.parametrize("step", [0.01, 0.001])
def test_the_first_vectors_are_the_drawn_ones_on_average(step):
    vectors = build(LowPrecision(bits=16, step=step, init_std=0.1)).rows("f", torch.arange(3000))
    # Rounding adds at most step^2 / 4 to the variance.
    assert 0.1 - 0.001 < float(vectors.std()) < (0.01 + step**2 / 4) ** 0.5 + 0.001
    assert abs(float(vectors.mean())) < 0.002


@pytest.mark.parametrize("wrong", [{"bits": 4}, {"step": 0.0}, {"step": float("nan")}])
def test_other_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="bits must be 8 or 16 and step positive"):
        LowPrecision(**wrong)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_shipped_settings_have_the_study_s_step(bits):
    method = instantiate(OmegaConf.load(FOLDER / f"int{bits}.yaml"))
    assert (method.bits, method.step) == (bits, 0.01)
