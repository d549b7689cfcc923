"""The command that goes on with a run can be pasted into a shell."""

import shlex

import pytest
from hydra.core.hydra_config import HydraConfig

from recemb.cli.train import _command


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["seed=1", "paths.run=x"], ["seed=1"]),
        (["data.only={event: view}"], ["data.only={event: view}"]),
        (["--config-dir", "my", "data=mine"], ["--config-dir", "my", "data=mine"]),
        (["--config-dir=my", 'data.text={delimiter: ","}'],) * 2,
    ],
)
def test_what_was_given_is_told(monkeypatch: pytest.MonkeyPatch, given, told) -> None:
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: False))
    monkeypatch.setattr("sys.argv", ["recemb train", *given])
    assert shlex.split(_command()) == ["recemb", "train", *told]
