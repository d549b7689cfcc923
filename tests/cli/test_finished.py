"""What a run's configuration may make when the run is read again."""

import json
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recemb.cli import finished
from recemb.cli.finished import finished_run

FULL = "recemb.methods.full.Full"


def forged(folder: Path, **config: Any) -> Path:
    """Return the folder of a run that says it has finished, with this configuration."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text(json.dumps({"metrics": {}}))
    return folder


def refusal(run: Path) -> str:
    with pytest.raises(ValueError, match="trust_targets=true") as caught:
        finished_run(run, cache=None, trusted=False)
    return str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "recemb.train.ranks.os.mkdir",
        "recemb.train.ranks.torch.load",
        "recemb.cli.cell.subprocess.run",
        "recemb.cli.main",
        "recemb.methods.full",
        "recemb.methods.full.Full.build",
        "torch.optim.adam.torch.load",
        "torch.optim.Optimizer.__init__",
        "torch.optim.adam.adam",
        "torch.optim.adam.Adam",
        "torch.optim.swa_utils.AveragedModel",
        "torch.optim.__dict__",
        "torch.optim.nothing_of_this_name",
        "recemb.methods.${name}",
        "recemb..methods.full.Full",
        f" {FULL}",
        "",
    ],
)
def test_only_what_is_configured_here_is_made(tmp_path: Path, target: str) -> None:
    run = forged(tmp_path / "run", embedding={"_target_": target})
    assert f"makes a {target} (embedding._target_)" in refusal(run)


@pytest.mark.parametrize(
    ("wrapped", "where"),
    [
        ([{"_target_": "os.mkdir"}], "embedding.z.0._target_"),
        ([[{"_target_": "os.mkdir"}]], "embedding.z.0.0._target_"),
        ([1, [2, {"a": [{"_target_": "os.mkdir"}]}]], "embedding.z.1.1.a.0._target_"),
        ({"a": {"b": {"_target_": "os.mkdir"}}}, "embedding.z.a.b._target_"),
    ],
)
def test_no_depth_hides_what_is_made(tmp_path: Path, wrapped: Any, where: str) -> None:
    run = forged(tmp_path / "run", embedding={"_target_": FULL, "z": wrapped})
    assert f"makes a os.mkdir ({where})" in refusal(run)


def test_pairs_hide_nothing(tmp_path: Path) -> None:
    run = forged(tmp_path / "run")
    text = f"embedding: {{_target_: {FULL}, z: !!pairs [a: {{_target_: os.mkdir}}]}}"
    (run / "config.yaml").write_text(text)
    assert "makes a os.mkdir" in refusal(run)


@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:{_target_:os.mkdir}}",
        "${oc.decode:'{_target_:os.mkdir}'}",
        "a ${name}",
    ],
)
def test_what_would_be_made_of_other_words_is_refused(tmp_path: Path, text: str) -> None:
    run = forged(tmp_path / "run", name="b", embedding={"_target_": FULL, "z": [[text]]})
    assert f"{text} (embedding.z.0.0)" in refusal(run)


def test_nothing_is_imported_to_judge_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recemb_planted.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("recemb_planted.Full", "recemb.recemb_planted.Full"):
        run = forged(tmp_path / target, embedding={"_target_": target})
        assert f"makes a {target}" in refusal(run)


def test_what_is_trusted_is_not_judged(tmp_path: Path) -> None:
    run = forged(
        tmp_path / "run",
        embedding={"_target_": "mine.Method"},
        trainer={},
        data={"_target_": "mine.Data"},
        paths={"cache": str(tmp_path)},
    )
    with pytest.raises(FileNotFoundError, match="no prepared data"):
        finished_run(run, cache=None, trusted=True)


def packaged(folder: Traversable) -> Iterator[Traversable]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from packaged(entry)
        elif entry.name.endswith(".yaml"):
            yield entry


FILES = [
    file
    for group in ("data", "embedding", "model", "optimizer", "trainer", "experiment")
    for file in packaged(resources.files("recemb.conf") / group)
]


def test_whatever_is_packaged_is_made() -> None:
    assert len(FILES) > 80
    for file in FILES:
        config = {"it": yaml.safe_load(file.read_text(encoding="utf-8"))}
        # Interpolations of a packaged file are resolved in a run's.
        finished._check_targets(without_interpolations(config))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "RMSprop"])
def test_every_optimizer_of_torch_is_made(name: str) -> None:
    finished._check_targets({"dense": {"_target_": f"torch.optim.{name}", "_partial_": True}})


def without_interpolations(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_interpolations(its) for key, its in value.items()}
    if isinstance(value, list):
        return [without_interpolations(its) for its in value]
    return None if isinstance(value, str) and "${" in value else value
