"""Each data set goes from files in the publisher's format to a trained and evaluated model."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from recemb.cli.train import train
from recemb.data.avazu import STRINGS
from recemb.data.frappe import FEATURES
from recemb.data.movielens_release import GENRES_100K

NUM_ROWS = 300
DRAW = np.random.default_rng(0)


def lines(*columns: np.ndarray, delimiter: str) -> list[str]:
    return [delimiter.join(map(str, row)) for row in zip(*columns, strict=True)]


def ints(limit: int, first: int = 0) -> np.ndarray:
    return DRAW.integers(first, limit, NUM_ROWS)


def write(path: Path, rows: list[str], header: str | None = None) -> None:
    path.write_text("".join(f"{row}\n" for row in ([header] if header else []) + rows))


def frappe(folder: Path) -> list[str]:
    for name in ("train", "valid", "test"):
        rows = lines(ints(2), *(ints(20) for _ in FEATURES), delimiter=",")
        write(folder / f"{name}.csv", rows, ",".join(["label", *FEATURES]))
    return ["data=frappe"]


def criteo(folder: Path) -> list[str]:
    numbers = [[str(v) if v >= 0 else "" for v in ints(50, -5)] for _ in range(13)]
    strings = [[f"{v:08x}" if v else "" for v in ints(30)] for _ in range(26)]
    write(folder / "train.txt", lines(ints(2), *numbers, *strings, delimiter="\t"))
    return ["data=criteo", "data.min_count=2"]


def criteo_days(folder: Path) -> list[str]:
    for day in range(3):
        numbers, strings = [ints(50) for _ in range(13)], [ints(30) for _ in range(26)]
        write(folder / f"day_{day}", lines(ints(2), *numbers, *strings, delimiter="\t"))
    return [
        *("data=criteo", "data.split=last_file", "data.numbers=buckets"),
        *("data.encoding=hash", "data.num_embeddings=100"),
    ]


def avazu(folder: Path) -> list[str]:
    hours = 14102100 + 100 * ints(10) + ints(24)
    others = [ints(20) for _ in STRINGS]
    rows = lines(ints(10**6), ints(2), hours, *others, delimiter=",")
    write(folder / "train.csv", rows, ",".join(["id", "click", "hour", *STRINGS]))
    return ["data=avazu", "data.group=device_ip"]


def kdd12(folder: Path) -> list[str]:
    others = [ints(20) for _ in range(9)]
    rows = lines(ints(3), ints(9, 1), *others, ints(30), delimiter="\t")
    write(folder / "training.txt", rows)
    write(folder / "userid_profile.txt", [f"{u}\t{u % 3}\t{u % 7}" for u in range(1, 25)])
    return ["data=kdd12", "data.min_count=1", "data.with_profile=true"]


def movielens_100k(folder: Path) -> list[str]:
    seconds = 874_965_758 + ints(10**6)
    rows = lines(ints(21, 1), ints(31, 1), ints(6, 1), seconds, delimiter="\t")
    write(folder / "u.data", rows)
    write(folder / "u.user", [f"{u}|{20 + u}|F|artist|{10000 + u}" for u in range(1, 21)])
    films = [
        f"{i}|Film {i} (1990)|01-Jan-1990|||"
        + "|".join(str((i + g) % 2) for g in range(len(GENRES_100K)))
        for i in range(1, 31)
    ]
    write(folder / "u.item", films)
    return ["data=movielens", "data.split=time"]


def movielens_latest(folder: Path) -> list[str]:
    stars = ints(11, 1) / 2
    rows = lines(ints(21, 1), ints(31, 1), stars, ints(10**6), delimiter=",")
    write(folder / "ratings.csv", rows, "userId,movieId,rating,timestamp")
    films = [f'{i},"Film, The {i} (1990)",Drama|War' for i in range(1, 31)]
    write(folder / "movies.csv", films, "movieId,title,genres")
    return ["data=movielens_latest", "data.split=leave_last"]


def table(folder: Path) -> list[str]:
    tags = ["|".join(map(str, DRAW.integers(0, 9, n))) for n in ints(4)]
    rows = lines(ints(2), ints(100) / 7, ints(20), np.array(tags), delimiter=",")
    write(folder / "clicks.csv", rows, "click,price,shop,tags")
    return [
        *("data=table", "data.files=[clicks.csv]", "data.label=click", "+data.dense.price=log"),
        *("+data.categorical.shop=vocabulary", "+data.categorical.tags={is_multi_hot: true}"),
    ]


@pytest.mark.parametrize(
    "write_files",
    [
        *(frappe, criteo, criteo_days, avazu, kdd12),
        *(movielens_100k, movielens_latest, table),
    ],
)
def test_a_data_set_is_prepared_and_trained_on(
    tmp_path: Path, write_files: Callable[[Path], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    overrides = [
        *write_files(raw),
        *("name=test", "model=lr", "logger=none", "progress=false", "embedding_dim=4"),
        *("trainer.batch_size=64", "trainer.max_steps=3", "trainer.num_threads=1"),
        *(f"paths.run={tmp_path}/run", f"paths.cache={tmp_path}/cache"),
    ]
    overrides.append(f"data.raw={raw}")
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        summary = train(compose("train", overrides=overrides))
    written = json.loads((tmp_path / "run/summary.json").read_text())
    assert written["metrics"]["test/auc"] == summary["metrics"]["test/auc"]
    assert 0 < summary["metrics"]["test/logloss"] < 10
    assert math.isfinite(summary["metrics"]["val/auc"])
    assert str(tmp_path) in capsys.readouterr().out
