"""One file with named members and a JSON description of them: an uncompressed zip.

Members are stored as they are, aligned, so that they can be read through a memory map, and any zip
tool can list them. The description is written last; it has the size and the SHA-256 of every other
member.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recemb.checkpoint.tensor_file import map_file

DESCRIPTION = "recemb.json"
FORMAT, FORMAT_VERSION = "recemb-export", 1
_ALIGNMENT_BYTES = 64
_LOCAL_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
_EXTRA_HEADER_BYTES = 4
_EXTRA_ID = 0x4252
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK_BYTES = 1 << 24


class ArchiveWriter:
    """Writes members one after the other.

    Args:
        path: the file; overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._members: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._zip.close()
        finally:
            self._file.close()

    def add(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a member, of any size, from its pieces."""
        digest, num_bytes = hashlib.sha256(), 0
        with self._zip.open(self._entry(name), "w", force_zip64=True) as member:
            for piece in pieces:
                member.write(piece)
                digest.update(piece)
                num_bytes += len(piece)
        self._members[name] = {"bytes": num_bytes, "sha256": digest.hexdigest()}

    def sizes(self) -> dict[str, int]:
        """Return the bytes of the members so far, the description left out."""
        return {name: its["bytes"] for name, its in self._members.items()}

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write the description, with what is known of the members; the last thing to do."""
        whole = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **description,
            "members": self._members,
        }
        text = json.dumps(whole, indent=1, allow_nan=False)
        with self._zip.open(self._entry(DESCRIPTION), "w") as member:
            member.write(text.encode())

    def _entry(self, name: str) -> zipfile.ZipInfo:
        """Return the entry of a member whose bytes will be aligned."""
        entry = zipfile.ZipInfo(name, date_time=_EPOCH)
        start = self._file.tell() + _LOCAL_HEADER_BYTES + len(name.encode()) + _ZIP64_EXTRA_BYTES
        padding = -(start + _EXTRA_HEADER_BYTES) % _ALIGNMENT_BYTES
        entry.extra = struct.pack("<HH", _EXTRA_ID, padding) + bytes(padding)
        return entry


class Archive:
    """A file that `ArchiveWriter` wrote.

    Args:
        path: the file.

    Attributes:
        path: the file.
        description: what `describe` wrote, its members included.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such archive, is damaged, or has a format of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as opened:
                self._entries = {entry.filename: entry for entry in opened.infolist()}
                self.description: dict[str, Any] = json.loads(opened.read(DESCRIPTION))
            self._check_format()
            members = self.description["members"]
            self._members = {
                str(name): (int(its["bytes"]), str(its["sha256"])) for name, its in members.items()
            }
        except FileNotFoundError:
            raise FileNotFoundError(f"export {path}: there is no such file") from None
        except (zipfile.BadZipFile, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(f"it is no export of recemb, or not whole ({error})") from error
        except json.JSONDecodeError as error:
            raise self._damaged(f"its member {DESCRIPTION} is not JSON ({error})") from error

    def names(self) -> tuple[str, ...]:
        """Return the names of the members, in the order in which they were written."""
        return tuple(self._members)

    def map(self, name: str) -> NDArray[np.uint8]:
        """Return a member's bytes, checked against its checksum, as a private map of the file.

        Raises:
            ValueError: if it is missing or damaged.
        """
        if name not in self._members or name not in self._entries:
            raise self._damaged(f"its member {name} is missing")
        num_bytes, digest = self._members[name]
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != num_bytes:
            raise self._damaged(
                f"its member {name} has {entry.file_size} bytes, stored in way "
                f"{entry.compress_type}, instead of {num_bytes} as they are"
            )
        data = self._bytes(entry)
        found = hashlib.sha256()
        for start in range(0, num_bytes, _CHUNK_BYTES):
            found.update(data[start : start + _CHUNK_BYTES].data)
        if found.hexdigest() != digest:
            raise self._damaged(f"its member {name} does not match its checksum")
        return data

    def _check_format(self) -> None:
        name, version = self.description.get("format"), self.description.get("format_version")
        if name != FORMAT or not isinstance(version, int):
            raise self._damaged(f"its format is {name!r} {version!r}, not '{FORMAT}'")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"export {self.path}: it has format {version}, but this recemb reads up to "
                f"{FORMAT_VERSION}; use the version that wrote it, or a newer one"
            )

    def _bytes(self, entry: zipfile.ZipInfo) -> NDArray[np.uint8]:
        # Private: tensors made of it may be written to, the file stays as it is.
        whole = map_file(self.path)
        header = whole[entry.header_offset :][:_LOCAL_HEADER_BYTES].tobytes()
        if len(header) < _LOCAL_HEADER_BYTES:
            raise self._damaged(f"its member {entry.filename} lies outside it")
        name_bytes, extra_bytes = struct.unpack("<HH", header[-4:])
        first = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        data = whole[first : first + entry.file_size]
        if len(data) != entry.file_size:
            raise self._damaged(f"its member {entry.filename} lies outside it")
        return data

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"export {self.path}: {what}; write it again with recemb export")
