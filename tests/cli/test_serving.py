"""`recemb export` and `recemb predict`: what they print, what they leave, what they refuse."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from recemb.checkpoint.export import load
from recemb.cli import main as command

TRAIN = [
    *("data=synthetic", "data.num_train=512", "data.num_val=64", "data.num_test=64"),
    *("data.scale=0.0001", "model=lr", "embedding=hash", "embedding.exact_below=0", "budget=0.5"),
    *("logger=none", "progress=false", "trainer.max_steps=2", "trainer.num_threads=1"),
]


def recemb(*words: str) -> int:
    """Run the command; return its status, however it ends."""
    try:
        return command.main(list(words))
    except SystemExit as ended:
        return int(str(ended.code))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    paths = [f"paths.run={folder / 'run'}", f"paths.cache={folder / 'cache'}"]
    assert recemb("train", *TRAIN, *paths) == 0
    assert recemb("export", f"run={folder / 'run'}", f"out={folder / 'model'}") == 0
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"I{j + 1}" for j in range(13)), *(f"C{j + 1}" for j in range(26))])
        rows.writerows([[0.5] * 13 + [j % 3] * 26 for j in range(5)])
    return folder


def test_an_export_says_what_is_in_it_and_changes_nothing_else(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert recemb("export", f"run={trained / 'run'}", f"out={tmp_path / 'model'}") == 0
    printed = capsys.readouterr().out
    assert "tables.safetensors" in printed
    assert "recemb.json included" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_two_exports_of_a_run_are_one_and_the_same(trained: Path, tmp_path: Path) -> None:
    assert recemb("export", f"run={trained / 'run'}", f"out={tmp_path / 'again'}") == 0
    assert (tmp_path / "again").read_bytes() == (trained / "model").read_bytes()


def test_an_export_in_fewer_bits_is_smaller_and_scores(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert recemb("export", f"run={trained / 'run'}", f"out={out}", "post=fp16") == 0
    full, small = (load(path).tables.storage() for path in (trained / "model", out))
    assert small.serve["weights"] == full.serve["weights"] / 2
    words = [f"model={out}", f"in={trained / 'rows.csv'}", f"out={tmp_path / 'out.csv'}"]
    assert recemb("predict", *words, "progress=false") == 0


def test_rows_are_written_with_a_last_column(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={trained / 'model'}", f"in={trained / 'rows.csv'}", "progress=false"]
    assert recemb("predict", *words, f"out={tmp_path / 'out.csv'}", "batch_size=2") == 0
    before = list(csv.reader((trained / "rows.csv").read_text().splitlines()))
    after = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row[:-1] for row in after] == before
    assert after[0][-1] == "probability"
    assert all(0 < float(row[-1]) < 1 for row in after[1:])
    assert after[1][-1] == after[4][-1] != after[2][-1]
    assert "scored   5 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "run is missing; write recemb export run=FOLDER out=FILE"),
        (["export", "run=nowhere", "out=x"], "nowhere is no run"),
        (["predict"], "model is missing; write recemb predict model=FILE in=FILE out=FILE"),
        (["predict", "model=nowhere", "in=a", "out=b"], "nowhere: there is no such file"),
        (["predict", "modle=x"], "modle: there is no such key"),
        (["export", "postt=int8"], "postt: there is no such key"),
    ],
)
def test_what_is_missing_is_said(
    words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recemb(*words) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_number_of_bits_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert recemb("export", f"run={trained / 'run'}", f"out={out}", "post=int3") == 2
    assert "post must be one of none, fp16, int8, int4, int2, got 'int3'" in capsys.readouterr().err
    assert not out.exists()


def test_the_input_is_not_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = trained / "rows.csv"
    before = rows.read_bytes()
    assert recemb("predict", f"model={trained / 'model'}", f"in={rows}", f"out={rows}") == 2
    assert "out is the input itself" in capsys.readouterr().err
    assert rows.read_bytes() == before


def copy_of(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def test_a_run_that_has_not_finished_is_not_exported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(trained, tmp_path)
    (run / "summary.json").unlink()
    assert recemb("export", f"run={run}", f"out={tmp_path / 'model'}") == 2
    assert "has not finished; run its command again" in capsys.readouterr().err


def test_a_run_without_checkpoints_is_not_trained_anew(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(trained, tmp_path)
    shutil.rmtree(run / "checkpoints" / "train")
    assert recemb("export", f"run={run}", f"out={tmp_path / 'model'}") == 2
    assert "checkpoints are damaged or not complete" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_prepared_data_that_were_moved_can_be_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(trained, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["paths"]["cache"] = str(tmp_path / "elsewhere")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert recemb("export", f"run={run}", f"out={tmp_path / 'model'}") == 2
    assert "there are no prepared data of these settings" in capsys.readouterr().err
    words = [f"run={run}", f"out={tmp_path / 'model'}", f"cache={trained / 'cache'}"]
    assert recemb("export", *words) == 0


@pytest.mark.parametrize("verb", ["export", "inspect"])
@pytest.mark.parametrize(
    "hidden", ["recemb.train.ranks.os.mkdir", "os.mkdir", "${oc.create:{_target_:os.mkdir,path:X}}"]
)
def test_nothing_hides_what_is_made(
    trained: Path, tmp_path: Path, verb: str, hidden: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, planted = copy_of(trained, tmp_path), tmp_path / "planted"
    config = yaml.safe_load((run / "config.yaml").read_text())
    is_section = hidden.startswith("$")
    made = {"_target_": hidden, "path": str(planted)}
    config["embedding"]["z"] = [[hidden.replace("X", str(planted)) if is_section else made]]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    words = [f"run={run}", f"out={tmp_path / 'model'}"]
    assert recemb(verb, *words) == 2
    assert "set trust_targets=true" in capsys.readouterr().err
    assert not planted.exists()


@pytest.mark.parametrize("group", ["embedding", "model"])
def test_a_foreign_target_is_not_made(
    trained: Path, tmp_path: Path, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(trained, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[group]["_target_"] = "os.system"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert recemb("export", f"run={run}", f"out={tmp_path / 'model'}") == 2
    assert "makes a os.system" in capsys.readouterr().err
