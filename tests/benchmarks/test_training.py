import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recemb.models.deepfm import DeepFM
from recemb.models.dlrm import DLRM

FOLDERS = ("training",)

# The sums run in another order.
_TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def _linears(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def _copy_linears(source: torch.nn.Module, target: torch.nn.Module) -> None:
    for a, b in zip(_linears(source), _linears(target), strict=True):
        b.load_state_dict(a.state_dict())


def test_hand_written_deepfm_has_the_mathematics_of_ours(load: Any) -> None:
    ours = DeepFM(num_dense=13, embedding_dims=(16,) * 26)
    theirs = load("dense_model").DeepFM()
    _copy_linears(ours.mlp, theirs.mlp)
    assert ours.fields.dense_vectors is not None
    assert ours.first_order.dense_weights is not None
    with torch.no_grad():
        ours.first_order.dense_weights.normal_()
        theirs.dense_vectors.copy_(ours.fields.dense_vectors)
        theirs.dense_weights.copy_(ours.first_order.dense_weights)
    dense, vectors, weights = torch.rand(5, 13), torch.randn(5, 416), torch.randn(5, 26)
    expected = ours.logits(dense, vectors, weights)
    found = theirs(dense, vectors.view(5, 26, 16), weights)
    torch.testing.assert_close(found, expected, **_TOLERANCE)


def test_hand_written_dlrm_has_the_mathematics_of_ours(load: Any) -> None:
    ours = DLRM(num_dense=13, embedding_dims=(16,) * 26)
    theirs = load("dense_model").DLRM()
    assert ours.bottom is not None
    _copy_linears(ours.bottom, theirs.bottom)
    _copy_linears(ours.top, theirs.top)
    dense, vectors = torch.rand(5, 13), torch.randn(5, 416)
    expected = ours.logits(dense, vectors, torch.empty(5, 0))
    found = theirs(dense, vectors.view(5, 26, 16), torch.empty(5, 0))
    torch.testing.assert_close(found, expected, **_TOLERANCE)


def test_planted_labels_have_the_stated_best_log_loss(load: Any, tmp_path: Path) -> None:
    clicks = load("click_data")
    data = clicks.ClickData(num_embeddings=1000, num_train=1, num_test=200_000, seed=3)
    planted = clicks._Planted(data)
    _, _, labels, p = planted.draw(data.num_test)
    log_loss = -np.where(labels == 1, np.log(p), np.log1p(-p)).mean()
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)).mean()
    # Four standard errors of a mean of 200,000 losses whose deviation is below 1.
    assert abs(log_loss - entropy) < 4 / math.sqrt(data.num_test)


def test_generated_ids_are_in_range(load: Any) -> None:
    clicks = load("click_data")
    data = clicks.ClickData(num_embeddings=77, num_train=1, num_test=1, seed=0)
    ids = clicks._Planted(data).draw(20_000)[0]
    assert ids.min() == 0
    assert ids.max() == 76


def test_every_wave_has_the_reference_and_each_contender_runs_once(load: Any) -> None:
    rounds, contenders, task = load("rounds"), load("contenders"), load("task")
    one = task.Task(model="deepfm", num_embeddings=1, batch_size=1, seed=0, num_threads=1, data="")
    reference = contenders.REFERENCE
    needed = max(rounds.expected_bytes(c, one) for c in contenders.CONTENDERS)
    # Room for three at a time.
    rounds.available_bytes = lambda: 3.3 * needed / rounds._MEMORY_SHARE
    found = rounds.waves(contenders.CONTENDERS, reference, one)
    others = [c.name for wave in found for c in wave[1:]]
    assert all(wave[0] is reference for wave in found)
    assert sorted(others) == sorted(c.name for c in contenders.CONTENDERS if c is not reference)
    assert max(len(wave) for wave in found) == 3


def test_a_target_is_judged_by_the_median_ratio_to_the_fastest_peer(load: Any) -> None:
    verdicts, rounds, contenders = load("verdicts"), load("rounds"), load("contenders")
    by_name = {c.name: c for c in contenders.CONTENDERS}

    def measured(name: str, ratios: list[float]) -> Any:
        return rounds.Measurement(
            contender=by_name[name],
            speeds=[1000 * r for r in ratios],
            ratios=ratios,
            parts={"data": 0.01} if by_name[name].is_ours else {},
        )

    case = verdicts.Case(
        model="deepfm",
        num_embeddings=100_000,
        batch_size=100,
        found=[
            measured("recemb fp32", [1.0, 1.0, 1.0]),
            measured("FBGEMM table", [0.5, 0.8, 0.8]),
            measured("FuxiCTR", [0.2, 0.2, 0.2]),
        ],
    )
    fp32, *_, data = verdicts.judge(case)
    assert fp32.values == [2.0, 1.25, 1.25]
    assert fp32.is_met
    # 10 ms of a step that takes 100 ms.
    assert data.values == [pytest.approx(0.1)]
    assert data.is_met is False


def test_checkpoints_are_measured_against_the_first_of_each_direction(
    load: Any, tmp_path: Path
) -> None:
    rows = load("checkpoint").measure(20, 2, tmp_path)
    assert {row["direction"] for row in rows} == {"write", "load", "train"}
    firsts = [row for row in rows if row["what"] in ("disk", "no checkpoint")]
    assert [row["time over the first's"] for row in firsts] == ["1.00"] * 3
