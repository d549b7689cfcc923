"""Checkpoints of earlier formats, made here without the code that reads them."""

import functools
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recemb.checkpoint.store import CheckpointName, CheckpointStore

NAME = CheckpointName("step", 12)


def write_version_1(folder: Path, state: bytes) -> None:
    """Write format 1: `state.pt`, torch's file of a dictionary, and a manifest of its bytes."""
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(state)
    manifest = {
        "format_version": 1,
        "size_bytes": len(state),
        "sha256": hashlib.sha256(state).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def torch_file(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_format_1_is_read(tmp_path: Path) -> None:
    state = {"tables": {"embedding_bags.user.weight": torch.arange(6.0).view(3, 2)}, "step": 12}
    write_version_1(tmp_path / str(NAME), torch_file(state))
    loaded = CheckpointStore(tmp_path).load(NAME)
    assert loaded["step"] == 12
    assert loaded["tables"]["embedding_bags.user.weight"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_damaged_checkpoint_of_format_1_is_refused(tmp_path: Path) -> None:
    write_version_1(tmp_path / str(NAME), torch_file({"w": torch.ones(100)}))
    path = tmp_path / str(NAME) / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.pt does not match its checksum"):
        CheckpointStore(tmp_path).load(NAME)


class Payload:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def open_torch_file(content: bytes) -> None:
    torch.load(io.BytesIO(content), weights_only=False)


@pytest.mark.parametrize(
    ("write", "careless_read"),
    [
        (torch_file, open_torch_file),
        (functools.partial(pickle.dumps, protocol=2), pickle.loads),
    ],
)
def test_a_pickle_in_a_checkpoint_is_never_executed(
    tmp_path: Path, write: Callable[[Any], bytes], careless_read: Callable[[bytes], Any]
) -> None:
    evidence = tmp_path / "executed"
    content = write({"weight": Payload(evidence)})
    careless_read(content)
    assert evidence.exists()
    evidence.unlink()
    write_version_1(tmp_path / str(NAME), content)
    with pytest.raises(ValueError, match="was not opened"):
        CheckpointStore(tmp_path).load(NAME)
    assert not evidence.exists()
