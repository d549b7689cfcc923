"""Checkpoints that two processes write and one, two or three read, by gloo on this machine."""

import os
import resource
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from recemb.checkpoint.background import BackgroundCheckpoints
from recemb.checkpoint.sharded_store import ShardedCheckpointStore
from recemb.checkpoint.store import CheckpointName, CheckpointStore
from recemb.tables.tensor_chunks import Chunk, TensorChunks
from tests.processes import on_ranks

ROWS, WIDTH = 10, 4
OLD, NEW = CheckpointName("step", 1), CheckpointName("step", 2)
Box = tuple[tuple[int, int], tuple[int, int]]
SHARDED = ("rows", "columns", "mixed", "dtensor", "sharded_tensor", "nothing")


def whole(step: int) -> dict[str, Tensor]:
    """Return the logical tensors after a step."""
    values = torch.arange(ROWS * WIDTH, dtype=torch.float32).view(ROWS, WIDTH) + 100 * step
    found = {name: values + place for place, name in enumerate(SHARDED)}
    return found | {"nothing": torch.empty(0, WIDTH)}


def boxes(
    cuts: Sequence[int], dim: int, rank: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return offsets and sizes of what a rank holds, cut at places along a dimension."""
    first, last = cuts[rank], cuts[rank + 1]
    offsets, sizes = [0, 0], [ROWS, WIDTH]
    offsets[dim], sizes[dim] = first, last - first
    return [((offsets[0], offsets[1]), (sizes[0], sizes[1]))] if last > first else []


def chunks(tensor: Tensor, held: Sequence[Box]) -> TensorChunks:
    parts = [
        Chunk((r, c), tensor[r : r + height, c : c + width].clone())
        for (r, c), (height, width) in held
    ]
    return TensorChunks(tensor.shape, tensor.dtype, parts)


def state(step: int, cuts: Sequence[int]) -> dict[str, Any]:
    """Return what this rank has of the logical tensors, rows cut at `cuts`."""
    rank, size = dist.get_rank(), dist.get_world_size()
    its = whole(step)
    mesh = init_device_mesh("cpu", (size,))
    held = boxes(cuts, 0, rank)
    # Row by row, the last rank first: several chunks for each process, in no order.
    mixed = [((r, 0), (1, WIDTH)) for r in reversed(range(ROWS)) if (r + 1) % size == rank]
    local = its["dtensor"].chunk(size)[rank].clone()
    shards = [
        LocalShard.from_tensor_and_offsets(
            its["sharded_tensor"][r : r + height].clone(), shard_offsets=[r, c], rank=rank
        )
        for (r, c), (height, _) in held
    ]
    return {
        "rows": chunks(its["rows"], held),
        "columns": chunks(its["columns"], boxes([0, *range(1, size), WIDTH], 1, rank)),
        "mixed": chunks(its["mixed"], mixed),
        "dtensor": DTensor.from_local(
            local, mesh, [Shard(0)], shape=its["dtensor"].shape, stride=(WIDTH, 1)
        ),
        "sharded_tensor": init_from_local_shards(shards, ROWS, WIDTH),
        "nothing": TensorChunks((0, WIDTH), torch.float32, [Chunk((0, 0), torch.empty(0, WIDTH))]),
        "model": {"weight": torch.arange(3.0) + step},
        "step": step,
    }


def local_parts(leaf: Any) -> list[tuple[Sequence[int], Tensor]]:
    if isinstance(leaf, TensorChunks):
        return [(c.offsets, c.values) for c in leaf.chunks]
    if isinstance(leaf, DTensor):
        size = -(-ROWS // dist.get_world_size())
        return [((dist.get_rank() * size, 0), leaf.to_local())]
    return [(s.metadata.shard_offsets, s.tensor) for s in leaf.local_shards()]


def assert_holds(found: Mapping[str, Any], step: int) -> None:
    """Check every chunk that this rank holds against the logical tensor."""
    expected = whole(step)
    for name in SHARDED:
        for (r, c), values in local_parts(found[name]):
            height, width = values.shape
            assert torch.equal(values, expected[name][r : r + height, c : c + width]), name
    assert torch.equal(found["model"]["weight"], torch.arange(3.0) + step)
    assert found["step"] == step


def save_by_rows(folder: Path) -> None:
    store = ShardedCheckpointStore(folder)
    store.save(OLD, state(1, [0, 5, ROWS]))
    store.save(NEW, state(2, [0, 3, ROWS]))
    assert store.names("step") == [OLD, NEW]


def load_with_other_slices(folder: Path) -> None:
    into = state(0, [0, 8, ROWS])
    found = ShardedCheckpointStore(folder).load_newest("step", into=into)
    assert found is not None
    assert found[0] == NEW
    assert_holds(found[1], 2)
    # The memory of `into` was written to.
    assert_holds({**into, "model": found[1]["model"], "step": 2}, 2)


def load_on_three(folder: Path) -> None:
    found = ShardedCheckpointStore(folder).load(NEW, into=state(0, [0, 0, 7, ROWS]))
    assert_holds(found, 2)


def load_whole(folder: Path) -> None:
    found = ShardedCheckpointStore(folder).load(NEW)
    assert all(torch.equal(found[name], its) for name, its in whole(2).items())


def load_other_names_and_shapes(folder: Path) -> None:
    store = ShardedCheckpointStore(folder)
    for into, message in (
        ({"lines": TensorChunks((4,), torch.float32, [])}, "has no tensor 'lines'"),
        ({"rows": TensorChunks((9, WIDTH), torch.float32, [])}, r"\(9, 4\) of .* is wanted"),
        ({"rows": TensorChunks((ROWS, WIDTH), torch.float16, [])}, r"float16 is wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            store.load(NEW, into=into)


def pass_over_damage(folder: Path) -> None:
    into = state(0, [0, 5, ROWS])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ShardedCheckpointStore(folder).load_newest("step", into=into)
    said = [str(w.message) for w in caught if "damaged" in str(w.message)]
    assert len(said) == (1 if dist.get_rank() == 0 else 0)
    assert all("tensors-00001-of-00002.safetensors" in text for text in said)
    assert found is not None
    assert found[0] == OLD
    assert_holds(found[1], 1)


def save_where_one_fails(folder: Path) -> None:
    store = ShardedCheckpointStore(folder)
    bad = state(3, [0, 5, ROWS])
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=r"step-0000000003 could not be written \(process 1: "):
        store.save(CheckpointName("step", 3), bad)
    dist.barrier()
    assert store.names("step") == [OLD, NEW]
    assert not list(folder.glob(".unfinished*"))


def save_in_the_background(folder: Path) -> None:
    # A group of its own: the messages of the save do not mix with those of training.
    group = dist.new_group(backend="gloo")
    store = BackgroundCheckpoints(ShardedCheckpointStore(folder / "background", group=group))
    cuts = [0, 4, ROWS]
    for name in (OLD, NEW):
        saved = state(name.step, cuts)
        store.save_all([(name, saved)], superseded=lambda its: its.names("step")[:-1])
        for chunk in saved["rows"].chunks:
            chunk.values.fill_(-1)
        total = torch.ones(1)
        for _ in range(20):
            dist.all_reduce(total)
    assert store.names("step") == [NEW]
    found = ShardedCheckpointStore(folder / "background").load(NEW, into=state(0, cuts))
    assert_holds(found, 2)


def two_processes(folder: Path) -> None:
    save_by_rows(folder)
    for action in (
        load_with_other_slices,
        load_whole,
        load_other_names_and_shapes,
        save_in_the_background,
        save_where_one_fails,
    ):
        action(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two processes saved, and loaded in several ways."""
    folder = tmp_path_factory.mktemp("sharded") / "checkpoints"
    on_ranks(2, two_processes, folder)
    return folder


def test_what_two_processes_save_one_alone_loads(saved: Path) -> None:
    found = CheckpointStore(saved).load(NEW)
    assert all(torch.equal(found[name], its) for name, its in whole(2).items())
    assert found["step"] == 2
    assert found["model"]["weight"].tolist() == [2.0, 3.0, 4.0]


def test_each_process_writes_what_it_holds_and_no_more(saved: Path) -> None:
    files = sorted((saved / str(NEW)).glob("*.safetensors"))
    assert [f.name for f in files] == [f"tensors-0000{r}-of-00002.safetensors" for r in (0, 1)]
    values = sum(its.nbytes for its in whole(2).values()) + 12
    header_bytes = sum(8 + int.from_bytes(f.read_bytes()[:8], "little") for f in files)
    assert sum(f.stat().st_size for f in files) == values + header_bytes


def test_nothing_in_it_is_a_pickle(saved: Path) -> None:
    names = sorted(path.name for path in (saved / str(NEW)).iterdir())
    assert names[:2] == ["manifest.json", "manifest.sha256"]
    assert all(name.endswith(".safetensors") for name in names[2:])


def test_three_processes_load_what_two_saved(saved: Path) -> None:
    on_ranks(3, load_on_three, saved)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 8
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_a_damaged_shard_means_the_older_checkpoint_everywhere(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    damage(folder / str(NEW) / "tensors-00001-of-00002.safetensors")
    on_ranks(2, pass_over_damage, folder)


def load_between_renames(folder: Path) -> None:
    store = ShardedCheckpointStore(folder)
    assert store.names("step") == [OLD, NEW]
    assert_holds(store.load(NEW, into=state(0, [0, 5, ROWS])), 2)
    found = store.load_newest("step", into=state(0, [0, 5, ROWS]))
    assert found is not None
    assert found[0] == NEW
    store.save(OLD, state(1, [0, 5, ROWS]))
    dist.barrier()
    assert sorted(path.name for path in folder.iterdir()) == [str(OLD), str(NEW)]


def test_what_a_kill_left_between_two_names_is_loaded_and_put_back(
    saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    for name in (OLD, NEW):
        shutil.copytree(saved / str(name), folder / str(name))
    # The first of a replacement's two renames, and what was to follow.
    (folder / str(NEW)).rename(folder / f".replaced-{NEW}")
    (folder / f".unfinished-{NEW}").mkdir()
    on_ranks(2, load_between_renames, folder)


def test_what_one_process_saves_two_load(tmp_path: Path) -> None:
    everything: dict[str, Any] = {**whole(2), "model": {"weight": torch.arange(3.0) + 2}, "step": 2}
    CheckpointStore(tmp_path / "one").save(NEW, everything)
    on_ranks(2, load_with_other_slices, tmp_path / "one")
