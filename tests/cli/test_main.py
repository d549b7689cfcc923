"""The command finds its verbs."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

from recemb.cli import main as command


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in command.VERBS)


def test_no_verb_is_an_error_that_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "usage: recemb VERB" in capsys.readouterr().err


def test_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"recemb {importlib.metadata.version('recemb')}\n"


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("docter", "doctor")])
def test_misspelt_verb_names_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([typed, "seed=1"]) == 2
    assert f"did you mean `recemb {meant}`?" in capsys.readouterr().err


def test_strange_verb_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["xyzzy"]) == 2
    assert "`recemb --help` lists them all" in capsys.readouterr().err


def test_verb_gets_the_rest_of_the_line_and_gives_the_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        seen.append(arguments)
        return 7

    monkeypatch.setattr("recemb.cli.doctor.run", run)
    assert command.main(["doctor", "a=1", "-m"]) == 7
    assert seen == [["a=1", "-m"]]


def test_dispatch_and_doctor_import_nothing_heavy() -> None:
    script = "import sys, recemb.cli.main, recemb.cli.doctor; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "torchrec", "fbgemm_gpu", "triton", "numpy", "pandas", "hydra", "pyarrow"}
    assert heavy & set(ended.stdout.split()) == set()


@pytest.mark.parametrize("verb", command.VERBS)
def test_module_of_every_verb_exists(verb: str) -> None:
    assert importlib.util.find_spec(command.VERBS[verb][0]) is not None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "modle=dnn"], "recemb train: modle: there is no such key\ndid you mean model?"),
        (["plan", "budgt=0.1"], "recemb plan: budgt: there is no such key\ndid you mean budget?"),
        (["prepare", "data=critoe"], "did you mean data=criteo?"),
        (["export", "rum=x"], "did you mean run?"),
        (["predict", "model=a.pt2", "inn=x"], "recemb predict: inn: there is no such key"),
        (["inspect", "runs/x", "rum=y"], "did you mean run?"),
        (["sweep", "sweep=compresion"], "did you mean sweep=compression?"),
        (["sweep", "sweep=compression", "optimizer=admm"], "did you mean optimizer=adam?"),
        (["sweep", "deepfm"], "'deepfm' is not an override; write key=value"),
    ],
)
def test_a_misspelt_override_is_explained(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == 2
    assert complaint in capsys.readouterr().err


def test_a_misspelt_override_is_explained_without_loading_torch() -> None:
    script = (
        "import sys; from recemb.cli.main import main; "
        "assert main(['train', 'modle=dnn']) == 2; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
