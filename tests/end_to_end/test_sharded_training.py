"""`recemb train` by several processes, as torchrun starts them, ends as in one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from recemb.checkpoint.store import CheckpointStore
from recemb.cli.train import run
from tests.end_to_end.runs import as_rank, free_port
from tests.processes import PROCESSES

# Plain SGD, for Adagrad and Adam divide what rounding leaves of a sum that cancels by itself.
RUN = (
    "optimizer=sgd",
    "optimizer.dense._target_=torch.optim.SGD",
    "optimizer.dense.lr=0.01",
    "trainer.batch_size=301",
    "trainer.max_epochs=2",
    "trainer.eval_every_steps=4",
    "trainer.checkpoint_every_steps=3",
    "trainer.keep_checkpoints=100",
    "trainer.patience=100",
    "trainer.log_every_steps=2",
    "trainer.max_gradient_norm=1",
    "trainer.num_threads=1",
    "logger=none",
    "progress=false",
)
FLAT = (
    "data=synthetic",
    # The last batch has one example: the first of two ranks has none of it.
    "data.num_train=2108",
    "data.scale=0.0001",
    "data.num_val=501",
    "data.num_test=303",
    "model=deepfm",
    "model.hidden_units=[32,16]",
)
HISTORIES = (
    "data=synthetic_sequences",
    "data.num_users=60",
    "data.length=60",
    "data.max_history=20",
    "model=dare",
    "model.hidden_units=[16]",
    "model.attention_dim=4",
    "embedding_dim=8",
    "trainer.max_epochs=50",
    "trainer.batch_size=101",
    "trainer.max_steps=50",
    "trainer.eval_every_steps=25",
)
SEARCHED = (
    "embedding=optembed",
    "embedding.weight_decay=0.001",
    "embedding.evolution={generations: 2, num_mutation: 2, num_crossover: 2}",
    "trainer.max_epochs=1",
    "trainer.max_steps=4",
)
# Sums of float32 gradients in another order, over two epochs.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def train_as(rank: int, world_size: int, port: int, arguments: list[str]) -> None:
    """Train as torchrun would have this process do."""
    if world_size > 1:
        as_rank(rank, world_size, port)
    run(arguments)


def exit_codes(folder: Path, cache: Path, *words: str, world_size: int = 1) -> set[int | None]:
    """Train with several processes; return their exit codes."""
    port = free_port()
    arguments = [*RUN, *words, f"paths.run={folder}", f"paths.cache={cache}"]
    ranks = [
        PROCESSES.Process(target=train_as, args=(rank, world_size, port, arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=900)
        process.kill()
    return {process.exitcode for process in ranks}


def train(folder: Path, cache: Path, *words: str, world_size: int = 1) -> dict[str, Any]:
    """Train with several processes; return the summary."""
    assert exit_codes(folder, cache, *words, world_size=world_size) == {0}
    summary = json.loads((folder / "summary.json").read_text())
    assert isinstance(summary, dict)
    return summary


def assert_same(found: Path, expected: Path, *, stage: str = "train") -> None:
    """Check that two runs ended with the same weights, state, position and metrics."""
    folders = [path / "checkpoints" / stage for path in (found, expected)]
    states = [CheckpointStore(folder).load_newest("step") for folder in folders]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0][0] == states[1][0]
    (_, its), (_, other) = states
    for part in ("tables", "model"):
        torch.testing.assert_close(dict(its[part]), dict(other[part]), **ROUNDING)
    for counted in ("epoch", "batch", "step", "examples", "best_step"):
        assert its["progress"][counted] == other["progress"][counted]
    rows = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (found, expected)
    ]
    assert len(rows[0]) == len(rows[1])
    for row, its_row in zip(*rows, strict=True):
        # Two examples may change places: 501 of them have some 50,000 pairs of labels.
        assert row == pytest.approx(its_row, abs=1e-3)


def go_back(folder: Path, step: int) -> None:
    """Make a finished run one that was killed after `step`."""
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints/train").iterdir():
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)


def test_two_processes_train_as_one_and_either_goes_on_where_the_other_stopped(
    tmp_path: Path,
) -> None:
    cache, one, two = tmp_path / "cache", tmp_path / "one", tmp_path / "two"
    train(one, cache, *FLAT)
    summary = train(two, cache, *FLAT, "sharding=row_wise", world_size=2)
    assert_same(two, one)
    assert len(summary["rank_peak_memory_bytes"]) == 2
    go_back(two, 9)
    train(two, cache, *FLAT)
    assert_same(two, one)
    plan = tmp_path / "plan.yaml"
    plan.write_text("default: data_parallel\ntables: {C3: row_wise, C4: {kind: column_wise}}\n")
    go_back(two, 6)
    train(two, cache, *FLAT, f"sharding={plan}", world_size=2)
    assert_same(two, one)


def test_a_searched_method_is_retrained_by_several_processes(tmp_path: Path) -> None:
    cache, one, two = tmp_path / "cache", tmp_path / "one", tmp_path / "two"
    words = [*FLAT, *SEARCHED, "sharding=row_wise"]
    # Two processes alone cannot begin, and say so.
    assert exit_codes(two, cache, *words, world_size=2) == {2}
    train(one, cache, *words)
    shutil.copytree(one, two, dirs_exist_ok=True)
    (two / "summary.json").unlink()
    shutil.rmtree(two / "checkpoints/retrain")
    train(two, cache, *words, world_size=2)
    assert_same(two, one, stage="retrain")


@pytest.mark.slow
def test_a_run_goes_on_in_any_number_of_processes(tmp_path: Path) -> None:
    cache, one, many = tmp_path / "cache", tmp_path / "one", tmp_path / "many"
    train(one, cache, *FLAT)
    shutil.copytree(one, many)
    for world_size, sharding in ((2, "row_wise"), (4, "table_wise"), (1, "none")):
        go_back(many, 6)
        train(many, cache, *FLAT, f"sharding={sharding}", world_size=world_size)
        assert_same(many, one)


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory) -> Path:
    """Return the folder of a run on sequences by one process."""
    folder: Path = tmp_path_factory.mktemp("sequences")
    train(folder / "one", folder / "cache", *HISTORIES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    "sharding", ["auto", "data_parallel", "table_wise", "row_wise", "column_wise", "mixed"]
)
def test_sequences_and_batch_norm_train_as_in_one_process(
    tmp_path: Path, of_one_process: Path, sharding: str, world_size: int
) -> None:
    many = tmp_path / "many"
    if sharding == "mixed":
        plan = tmp_path / "plan.yaml"
        plan.write_text(
            "default: row_wise\n"
            "tables: {item.attention: column_wise, category.representation: data_parallel}\n"
        )
        sharding = str(plan)
    words = [*HISTORIES, f"sharding={sharding}"]
    train(many, of_one_process / "cache", *words, world_size=world_size)
    assert_same(many, of_one_process / "one")
