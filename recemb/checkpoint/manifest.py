"""The manifest of a checkpoint: which tensors it holds, in which files, and their checksums.

Plain JSON, with a checksum of its own beside it. A tensor is whole, or in chunks in several files:
how it was sharded is where its chunks lie, nothing more, and a reader joins them as it likes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from recemb.checkpoint.atomic import sync
from recemb.checkpoint.checked_file import CheckedFile, verify
from recemb.checkpoint.tensor_file import TYPES, type_name

FORMAT_VERSION = 2
FILE, CHECKSUM_FILE = "manifest.json", "manifest.sha256"
_FORMAT = "recemb-checkpoint"


@dataclass(frozen=True)
class StoredChunk:
    """A box of a tensor, and where it lies.

    Attributes:
        offsets: where it begins in the tensor.
        sizes: how far it reaches.
        file: name of the file in the checkpoint's folder.
        key: name of the tensor in that file.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    key: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and the chunks that make it, which cover it without overlap.

    Attributes:
        dtype: of its values.
        shape: of the whole.
        chunks: in any order.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        files: checksums by file name.
        tensors: by name.
        state: the plain JSON of `plain_tree.split`.
    """

    files: Mapping[str, CheckedFile]
    tensors: Mapping[str, StoredTensor]
    state: Any

    def write(self, folder: Path) -> None:
        """Write the manifest and its checksum into a folder, and flush them and it to the disk."""
        content = {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            "files": {name: asdict(its) for name, its in self.files.items()},
            "tensors": {name: _to_json(its) for name, its in self.tensors.items()},
            "state": self.state,
        }
        text = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        (folder / FILE).write_bytes(text)
        (folder / CHECKSUM_FILE).write_bytes(_checksum_line(text))
        for path in (folder / FILE, folder / CHECKSUM_FILE, folder):
            sync(path)

    def verify_file(self, folder: Path, name: str) -> None:
        """Read one of the files and compare.

        Raises:
            ValueError: if it is not what the manifest says.
            OSError: if it cannot be read.
        """
        verify(folder / name, self.files[name])


def format_version(folder: Path) -> int:
    """Return the format of a checkpoint, whatever version wrote it.

    Raises:
        ValueError: if there is no readable manifest, or the format is newer than this code.
    """
    try:
        entry = json.loads((folder / FILE).read_bytes())
        version = entry["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it has no readable manifest ({error!r})") from error
    if type(version) is not int or version < 1:
        raise ValueError(f"its manifest has no format version, but {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"it has format {version}, but this recemb reads up to {FORMAT_VERSION}; use the "
            "version that wrote it, or a newer one"
        )
    return version


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint of the present format, checked against its checksum.

    Raises:
        ValueError: if it is damaged, or describes what cannot be.
    """
    try:
        text = (folder / FILE).read_bytes()
        if (folder / CHECKSUM_FILE).read_bytes() != _checksum_line(text):
            raise ValueError("it does not match its checksum")
        entry = json.loads(text)
        if entry["format"] != _FORMAT:
            raise ValueError(f"its format is {entry['format']!r}, not '{_FORMAT}'")
        files = {
            _plain_name(name): CheckedFile(int(its["num_bytes"]), tuple(map(int, its["crc32"])))
            for name, its in entry["files"].items()
        }
        tensors = {name: _from_json(name, its, files) for name, its in entry["tensors"].items()}
        return Manifest(files, tensors, entry["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its manifest is damaged: {error}") from error


def _checksum_line(text: bytes) -> bytes:
    """Return what `sha256sum manifest.json` prints."""
    return f"{hashlib.sha256(text).hexdigest()}  {FILE}\n".encode()


def _plain_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"file '{name}' lies elsewhere")
    return name


def _to_json(tensor: StoredTensor) -> dict[str, Any]:
    return {
        "dtype": type_name(tensor.dtype),
        "shape": tensor.shape,
        "chunks": [asdict(chunk) for chunk in tensor.chunks],
    }


def _from_json(
    name: str, entry: Mapping[str, Any], files: Mapping[str, CheckedFile]
) -> StoredTensor:
    shape = tuple(map(int, entry["shape"]))
    chunks = tuple(
        StoredChunk(
            tuple(map(int, its["offsets"])),
            tuple(map(int, its["sizes"])),
            str(its["file"]),
            str(its["key"]),
        )
        for its in entry["chunks"]
    )
    for chunk in chunks:
        if len(chunk.offsets) != len(shape) or len(chunk.sizes) != len(shape):
            raise ValueError(f"tensor '{name}' has a chunk of other dimensions")
        reach = zip(chunk.offsets, chunk.sizes, shape, strict=True)
        if any(not 0 <= first <= first + size <= limit for first, size, limit in reach):
            raise ValueError(f"tensor '{name}' has a chunk outside it")
        if chunk.file not in files:
            raise ValueError(f"tensor '{name}' lies in the unknown file '{chunk.file}'")
    # Overlaps are not looked for: the writer makes none, and the values would still be its own.
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise ValueError(f"the chunks of tensor '{name}' do not cover it")
    return StoredTensor(TYPES[entry["dtype"]], shape, chunks)
