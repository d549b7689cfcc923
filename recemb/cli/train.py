"""`recemb train`: prepare the data if needed, train, evaluate, save."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from recemb.cli.failure import user_errors
from recemb.cli.overrides import LEAVE_NO_FILES
from recemb.cli.prepare import prepare_from
from recemb.cli.status import INTERRUPTED
from recemb.data.prepared import Prepared
from recemb.models.click_model import ClickModel
from recemb.tables.method import Budget, Method
from recemb.train.configuration import claim_data, claim_folder, config_hash
from recemb.train.experiment import Experiment, run_experiment
from recemb.train.launch import launch_of
from recemb.train.log import NoTracker, QuietLog, RunLog, TensorBoard, Tracker
from recemb.train.progress import InterruptedFitError, StageReachedError
from recemb.train.ranks import Ranks, process_group
from recemb.train.summary import describe, read_summary, write_summary

_CONFIG_FLAGS = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")


def run(arguments: list[str]) -> int:
    """Run the verb; return the exit status."""
    # Of several processes the first one writes.
    quiet = LEAVE_NO_FILES if launch_of(os.environ).rank else ()
    sys.argv = ["recemb train", *arguments, *quiet]
    hydra.main(config_path="pkg://recemb.conf", config_name="train", version_base="1.3")(main)()
    return 0


def main(config: DictConfig) -> float:
    """Return the monitored validation metric of a run, for Hydra's sweepers.

    User errors end the process with one line and status 2; an interruption with 130.
    """
    with user_errors("train", traceback=config.traceback):
        try:
            summary = train(config)
        except InterruptedFitError as interruption:
            print(f"\n{interruption}", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except StageReachedError as reached:
            print(reached)
            return float("nan")
    value = summary["metrics"].get(config.trainer.monitor)
    return float("nan") if value is None else float(value)


def train(config: DictConfig) -> dict[str, Any]:
    """Return the summary of the configured run, training it unless it has finished before."""
    # torchrec's jagged tensors trip a one-time notice of torch.fx that no user can act on.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    with process_group(
        device=config.trainer.device, timeout_seconds=config.timeout_seconds
    ) as ranks:
        _check_ranks(config, ranks)
        return _train(config, ranks)


def _train(config: DictConfig, ranks: Ranks) -> dict[str, Any]:
    """Return the summary of the configured run; the first rank writes and prints for all."""
    folder = ranks.from_first(run_folder(config))
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = {str(k): v for k, v in plain.items()}

    def begin() -> None:
        claim_folder(folder, settings)
        claim_data(folder, prepare_from(config, overwrite=False).digest)

    ranks.first_alone("data", begin)
    if finished := read_summary(folder / "summary.json"):
        if ranks.is_first:
            print(f"{folder} has finished before\n{describe(finished)}")
        return finished
    prepared = prepare_from(config, overwrite=False)
    experiment = experiment_of(config, prepared, resume_command=f"{_command()} paths.run={folder}")
    log = _log(config, folder) if ranks.is_first else QuietLog()
    try:
        trained = run_experiment(experiment, folder=folder, log=log, stop_before=config.stop_before)
    finally:
        log.close()
    summary = trained.summary | {"config_hash": config_hash(settings)}
    if ranks.is_first:
        write_summary(folder / "summary.json", summary)
        print(describe(summary))
    return summary


def experiment_of(config: DictConfig, prepared: Prepared, *, resume_command: str) -> Experiment:
    """Return the configured experiment on prepared data.

    Args:
        config: the composed configuration.
        prepared: the data.
        resume_command: what to tell a user who interrupts.

    Raises:
        ValueError: if the model is none, or a constructor refuses its arguments.
    """
    for key in ("seed", "embedding_dim"):
        if not isinstance(config[key], int) or isinstance(config[key], bool):
            raise ValueError(f"{key} must be a whole number, got {config[key]!r}")
    return Experiment(
        prepared=prepared,
        method=method_of(config),
        model=model_class_of(config),
        model_options=model_options_of(config),
        table_optimizer=instantiate(config.optimizer.tables),
        dense_optimizer=instantiate(config.optimizer.dense),
        settings=instantiate(config.trainer),
        embedding_dim=config.embedding_dim,
        seed=config.seed,
        budget=budget_of(config),
        resume_command=resume_command,
        sharding=sharding_request(config),
    )


def sharding_request(config: DictConfig) -> str | dict[str, Any] | None:
    """Return the configured sharding: a word, or what a plan's file holds; None for none.

    Raises:
        ValueError: if there is no such file, or it is no mapping.
    """
    # Runs of earlier versions say nothing of it.
    word = str(config.get("sharding", "none"))
    if not word.endswith((".yaml", ".yml")):
        return None if word == "none" else word
    if not Path(word).is_file():
        raise ValueError(f"sharding={word}: there is no such file")
    plan = yaml.safe_load(Path(word).read_text(encoding="utf-8"))
    if not isinstance(plan, dict):
        raise ValueError(f"sharding={word}: a plan is a mapping with `default` and `tables`")
    return {str(k): v for k, v in plan.items()}


def method_of(config: DictConfig) -> Method:
    """Return the configured method.

    Raises:
        ValueError: if it is none, or a constructor refuses its arguments.
    """
    settings = method_settings(config)
    method = instantiate(settings)
    if not isinstance(method, Method):
        raise ValueError(
            f"embedding._target_ {settings.get('_target_')} is no method; subclass "
            "recemb.tables.method.Method"
        )
    return method


def method_settings(config: DictConfig) -> DictConfig:
    """Return the configured method's settings.

    Where the experiment has an `init_std`, methods, and parts of methods, that have one and leave
    it null take it up.
    """
    settings = config.embedding.copy()
    if (std := config.get("init_std")) is not None:
        _fill(settings, "init_std", std)
    assert isinstance(settings, DictConfig)
    return settings


def _fill(settings: DictConfig, key: str, value: float) -> None:
    """Set `key` wherever it is null, at any depth."""
    for name, its in settings.items():
        if isinstance(its, DictConfig):
            _fill(its, key, value)
        elif name == key and its is None:
            settings[name] = value


def run_folder(config: DictConfig) -> Path:
    """Return the folder of the run: `paths.run`, or the job's own folder in a multirun."""
    state = HydraConfig.get() if HydraConfig.initialized() else None
    if state is not None and state.mode == RunMode.MULTIRUN:
        return Path(state.runtime.output_dir)
    return Path(config.paths.run)


def model_class_of(config: DictConfig) -> type[ClickModel]:
    """Return the configured model.

    Raises:
        ValueError: if it is none.
    """
    found = get_class(config.model._target_)
    if not issubclass(found, ClickModel):
        raise ValueError(
            f"model._target_ {config.model._target_} is no model; subclass "
            "recemb.models.ranking_model.RankingModel"
        )
    return found


def model_options_of(config: DictConfig) -> dict[str, Any]:
    """Return the hyper-parameters of the configured model.

    Raises:
        ValueError: if a constructor refuses its arguments.
    """
    options = instantiate(config.model, _partial_=True).keywords
    plain = {str(k): v for k, v in options.items()}
    return {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in plain.items()}


def budget_of(config: DictConfig) -> Budget | None:
    """Return the configured budget, or None.

    Raises:
        ValueError: if it is given twice.
    """
    if config.budget is not None and config.budget_bytes is not None:
        raise ValueError("give budget or budget_bytes, not both")
    if config.budget is not None:
        return Budget(ratio=config.budget)
    if config.budget_bytes is not None:
        return Budget(num_bytes=config.budget_bytes)
    return None


def _check_ranks(config: DictConfig, ranks: Ranks) -> None:
    """Check that as many processes train as the configuration says.

    Raises:
        ValueError: if not.
    """
    if config.world_size not in (None, ranks.world_size):
        raise ValueError(
            f"world_size={config.world_size}, but {ranks.world_size} process(es) were started; use "
            f"torchrun --nproc-per-node {config.world_size} -m recemb train ..., or leave it out"
        )
    if ranks.world_size == 1 and config.sharding != "none":
        print(f"one process: sharding={config.sharding} changes nothing", file=sys.stderr)


def _log(config: DictConfig, folder: Path) -> RunLog:
    return RunLog(
        folder / "metrics.jsonl",
        tracker=_tracker(config, folder),
        show_progress=config.progress,
    )


def _tracker(config: DictConfig, folder: Path) -> Tracker:
    if config.logger.kind == "none":
        return NoTracker()
    if config.logger.kind == "tensorboard":
        return TensorBoard(folder / "tensorboard")
    raise ValueError(f"logger.kind must be tensorboard or none, got '{config.logger.kind}'")


def _command() -> str:
    words = sys.argv[1:]
    if HydraConfig.initialized():
        # Of a multirun, the words of this run alone; of flags, those that say where files are.
        words = [*_config_flags(words), *HydraConfig.get().overrides.task]
    words = [w for w in words if not w.startswith(("paths.run=", "stop_before="))]
    return " ".join(["recemb train", *map(shlex.quote, words)])


def _config_flags(words: Sequence[str]) -> list[str]:
    """Return the flags among a command's words that name configurations, with their values."""
    found: list[str] = []
    for number, word in enumerate(words):
        name, has_value, _ = word.partition("=")
        if name in _CONFIG_FLAGS:
            found += [word] if has_value else list(words[number : number + 2])
    return found
