"""What users do to the data of a run: prepare them anew from other files, or give no clicks."""

import csv
from pathlib import Path

import numpy as np
import pytest

from recemb.cli import main as command

COLUMNS = [
    *("+data.categorical.user.num_embeddings=20", "+data.categorical.item.num_embeddings=20"),
    *("data=table", "data.files=[clicks.csv]", "data.label=click"),
]
COMMON = [
    *("logger=none", "progress=false", "trainer.max_steps=2", "trainer.num_threads=1"),
    *("model=lr", "embedding_dim=4", "trainer.batch_size=64"),
]


def write(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    with (folder / "clicks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "click"])
        # As many ids in both, so that tables fit either.
        users, items = (np.tile(rng.permutation(40), 10) for _ in range(2))
        writer.writerows(zip(users, items, rng.integers(0, 2, 400), strict=True))
    return folder


def recemb(*words: str) -> int:
    try:
        return command.main(list(words))
    except SystemExit as ended:
        return int(str(ended.code))


def test_another_day_is_not_taken_for_the_day_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = [write(tmp_path / f"day{n}", n) for n in (1, 2)]
    cache, run = f"paths.cache={tmp_path / 'cache'}", f"paths.run={tmp_path / 'run'}"
    train = ["train", *COLUMNS, *COMMON, cache, run]
    assert recemb(*train, f"data.raw={days[0]}") == 0
    assert recemb(*train, f"data.raw={days[1]}") == 2
    assert "clicks.csv" in capsys.readouterr().err
    prepare = ["prepare", *COLUMNS, cache, f"data.raw={days[1]}"]
    assert recemb(*prepare, "overwrite=true") == 0
    export = ["export", f"run={tmp_path / 'run'}", f"out={tmp_path / 'model.recemb'}"]
    for words in ([*train, f"data.raw={days[1]}"], export, ["inspect", str(tmp_path / "run")]):
        assert recemb(*words) == 2
        assert "was trained on other data" in capsys.readouterr().err
    assert recemb("prepare", *COLUMNS, cache, f"data.raw={days[0]}", "overwrite=true") == 0
    assert recemb(*export) == 0


def test_a_metric_that_is_no_number_is_warned_of(tmp_path: Path) -> None:
    folder = write(tmp_path / "day", 1)
    lines = (folder / "clicks.csv").read_text().splitlines()
    never = [lines[0], *(line.rpartition(",")[0] + ",0" for line in lines[1:])]
    (folder / "clicks.csv").write_text("\n".join(never) + "\n")
    paths = [f"paths.cache={tmp_path / 'cache'}", f"paths.run={tmp_path / 'run'}"]
    with pytest.warns(UserWarning, match=r"val/auc is not a number .* trainer\.monitor"):
        assert recemb("train", *COLUMNS, *COMMON, *paths, f"data.raw={folder}") == 0
