"""What becomes of damaged, forged and half-written checkpoints, and of a full disk."""

import hashlib
import json
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recemb.checkpoint import checked_file
from recemb.checkpoint.store import CheckpointName, CheckpointStore
from tests.full_disk import files_of_at_most

OLD, NEW = CheckpointName("step", 1), CheckpointName("step", 2)
TENSORS = "tensors-00000-of-00001.safetensors"


def state(value: float) -> dict[str, Any]:
    return {"weight": torch.full((50, 4), value), "codes": torch.arange(9), "step": int(value)}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    found = CheckpointStore(tmp_path)
    found.save(OLD, state(1.0))
    found.save(NEW, state(2.0))
    return found


def newest_step(store: CheckpointStore) -> tuple[int, list[str]]:
    """Return the step that is loaded, and what is said about the others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = store.load_newest("step")
    assert found is not None
    assert found[1]["weight"].unique().tolist() == [float(found[0].step)]
    return found[0].step, [str(w.message) for w in caught]


def test_every_flipped_bit_is_noticed(store: CheckpointStore) -> None:
    rng = random.Random(1)
    for path in (store.folder / str(NEW)).iterdir():
        content = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            step, said = newest_step(store)
            assert step == 1, path.name
            assert len(said) == 1
            assert str(NEW) in said[0]
        path.write_bytes(content)
    assert newest_step(store) == (2, [])


def test_every_truncation_is_noticed(store: CheckpointStore) -> None:
    for path in (store.folder / str(NEW)).iterdir():
        content = path.read_bytes()
        for size in {0, 1, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:size])
            assert newest_step(store)[0] == 1, (path.name, size)
        path.write_bytes(content)


def test_the_message_says_which_bytes_of_which_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_file, "PIECE_BYTES", 100)
    store = CheckpointStore(tmp_path)
    store.save(NEW, state(2.0))
    path = tmp_path / str(NEW) / TENSORS
    content = bytearray(path.read_bytes())
    content[250] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{NEW}: {TENSORS} does not match .* byte 200 and 300"):
        store.load(NEW)


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the checksum that its new content has."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    line = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n"
    (folder / "manifest.sha256").write_text(line)


def rename_file(manifest: dict[str, Any]) -> None:
    manifest["files"]["../../secret"] = manifest["files"].pop(TENSORS)


def move_chunk(manifest: dict[str, Any]) -> None:
    manifest["tensors"]["weight"]["chunks"][0]["offsets"] = [1, 0]


def grow(manifest: dict[str, Any]) -> None:
    manifest["tensors"]["weight"]["shape"] = [10**12, 4]
    manifest["tensors"]["weight"]["chunks"][0]["sizes"] = [10**12, 4]


def swap(manifest: dict[str, Any]) -> None:
    manifest["tensors"]["weight"]["chunks"][0]["key"] = "codes"


def invent(manifest: dict[str, Any]) -> None:
    manifest["state"]["step"] = {"$call": "os.system"}


def target(manifest: dict[str, Any]) -> None:
    manifest["state"] = {"_target_": "os.system", "command": "echo"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_file, "'../../secret' lies elsewhere"),
        (move_chunk, "has a chunk outside it"),
        (grow, "does not hold a tensor 'weight'"),
        (swap, "does not hold a tensor 'codes'"),
        (invent, "means nothing"),
        (lambda manifest: manifest["tensors"].pop("weight"), "means nothing"),
        (lambda manifest: manifest.update(state=[1]), "not a dictionary"),
        (lambda manifest: manifest.update(format="other"), "its format is 'other'"),
        (lambda manifest: manifest.update(format_version="2"), "no format version"),
        (lambda manifest: manifest.update(format_version=3), "use the version that wrote it"),
    ],
)
def test_a_forged_manifest_is_refused(
    store: CheckpointStore, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    forge(store.folder / str(NEW), change)
    with pytest.raises(ValueError, match=re.escape(message)):
        store.load(NEW)


def test_a_manifest_of_endless_depth_is_refused(store: CheckpointStore) -> None:
    folder = store.folder / str(NEW)
    (folder / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="no readable manifest"):
        store.load(NEW)


def test_a_configuration_in_a_checkpoint_stays_data(store: CheckpointStore) -> None:
    forge(store.folder / str(NEW), target)
    assert store.load(NEW) == {"_target_": "os.system", "command": "echo"}


@pytest.mark.parametrize("num_bytes", [100, 2000, 100_000])
def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_else(
    store: CheckpointStore, num_bytes: int
) -> None:
    big = {"weight": torch.zeros(100_000), "step": 3}
    message = r"step-0000000003 could not be written \(.*MiB are free\); free some space"
    with files_of_at_most(num_bytes), pytest.raises(OSError, match=message):
        store.save(CheckpointName("step", 3), big)
    assert sorted(p.name for p in store.folder.iterdir()) == [str(OLD), str(NEW)]
    assert newest_step(store) == (2, [])
    store.save(CheckpointName("step", 3), big)
    assert store.load(CheckpointName("step", 3))["step"] == 3


def test_replacing_a_checkpoint_on_a_full_disk_leaves_the_old_one(store: CheckpointStore) -> None:
    with files_of_at_most(100), pytest.raises(OSError, match="could not be written"):
        store.save(NEW, state(7.0))
    assert newest_step(store) == (2, [])


def test_a_failing_flush_is_a_failed_save(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checked_file, "sync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        store.save(CheckpointName("step", 3), state(3.0))
    assert newest_step(store) == (2, [])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"set another paths\.run"):
        CheckpointStore(tmp_path / "file" / "checkpoints").save(OLD, state(1.0))
