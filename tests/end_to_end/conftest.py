"""What end-to-end tests share."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig

from recemb.cli.train import train
from recemb.train.experiment import Trained, run_experiment

Train = Callable[[DictConfig], Trained]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return a function that trains as `recemb train` does and returns what it leaves."""

    def train_it(config: DictConfig) -> Trained:
        seen: list[Trained] = []

        def run(*args: Any, **kwargs: Any) -> Trained:
            seen.append(run_experiment(*args, **kwargs))
            return seen[0]

        with monkeypatch.context() as patch:
            patch.setattr("recemb.cli.train.run_experiment", run)
            train(config)
        return seen[0]

    return train_it
