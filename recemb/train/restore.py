"""A finished run's tables and model, out of its checkpoints."""

import tempfile
from pathlib import Path

from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables
from recemb.train.experiment import Experiment, training_context
from recemb.train.log import NoTracker, RunLog


class _NoTraining(RunLog):
    """A log of a run in which nothing is left to train."""

    def start_epoch(self, label: str, *, total: int, done: int) -> None:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{label} would have to be trained first: the run's checkpoints are damaged or not "
            "complete; run its command again with another paths.run"
        )


def restore(experiment: Experiment, *, folder: Path) -> tuple[Tables, ClickModel]:
    """Return the tables and the model with which a finished run ended.

    The method's own `run` is done again, stages and all, each loaded from its checkpoints; nothing
    is trained and nothing in the folder changes.

    Args:
        experiment: what was done.
        folder: that of the run.

    Raises:
        ValueError: if a stage's checkpoints are missing or damaged, or do not fit the experiment.
    """
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} has no checkpoints; they are what a model is made of")
    with tempfile.TemporaryDirectory() as scratch:
        log = _NoTraining(Path(scratch) / "log", tracker=NoTracker(), show_progress=False)
        context = training_context(experiment, folder=folder, log=log)
        tables = experiment.method.run(context)
        return tables, context.fitted.model
