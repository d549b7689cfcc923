"""Files whose every piece has a checksum, computed while the file is written.

CRC-32 of pieces of 16 MiB. What is guarded against is damage, not malice (whoever can forge a file
can forge its checksum, and nothing in the file can execute): a CRC finds every change of up to 32
neighbouring bits, misses any other one time in 4e9, and costs a tenth of SHA-256's time on a CPU
without instructions for that.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from recemb.checkpoint.atomic import sync

PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class CheckedFile:
    """What a file must be.

    Attributes:
        num_bytes: its size.
        crc32: of each piece of `PIECE_BYTES`, the last may be shorter.
    """

    num_bytes: int
    crc32: tuple[int, ...]


def write_checked(path: Path, pieces: Iterable[bytes | memoryview]) -> CheckedFile:
    """Write a file from its pieces, of any size, flush it to the disk, and return its checksums."""
    checksums, crc, filled, num_bytes = [], 0, 0, 0
    with path.open("wb") as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            file.write(view)
            num_bytes += len(view)
            while len(view):
                part = view[: PIECE_BYTES - filled]
                crc, filled, view = zlib.crc32(part, crc), filled + len(part), view[len(part) :]
                if filled == PIECE_BYTES:
                    checksums.append(crc)
                    crc = filled = 0
    if filled:
        checksums.append(crc)
    sync(path)
    return CheckedFile(num_bytes, tuple(checksums))


class CheckedReader:
    """A file that is read from its beginning to its end, and compared as it is read.

    Args:
        path: the file.
        expected: what it must be.

    Raises:
        ValueError: if it is missing or has another size.
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, expected: CheckedFile) -> None:
        if not path.is_file():
            raise ValueError(f"{path.name} is missing")
        if (size := path.stat().st_size) != expected.num_bytes:
            raise ValueError(f"{path.name} has {size} bytes, expected {expected.num_bytes}")
        self._path = path
        self._expected = expected
        # Read, not mapped: a disk that fails is then an error, and no signal that ends the process.
        self._file = path.open("rb", buffering=0)
        self._read_bytes, self._crc = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, buffer: memoryview) -> None:
        """Fill a buffer with the next bytes.

        Raises:
            ValueError: if a piece that ends in it has another checksum, or the file ends before.
            OSError: if it cannot be read.
        """
        while len(buffer):
            index, inside = divmod(self._read_bytes, PIECE_BYTES)
            num = self._file.readinto(buffer[: PIECE_BYTES - inside])
            if not num:
                raise ValueError(f"{self._path.name} ends before it should")
            self._crc = zlib.crc32(buffer[:num], self._crc)
            self._read_bytes, buffer = self._read_bytes + num, buffer[num:]
            if inside + num == PIECE_BYTES or self._read_bytes == self._expected.num_bytes:
                if self._expected.crc32[index : index + 1] != (self._crc,):
                    first = index * PIECE_BYTES
                    raise ValueError(
                        f"{self._path.name} does not match its checksum between byte {first} and "
                        f"{self._read_bytes}"
                    )
                self._crc = 0


def verify(path: Path, expected: CheckedFile) -> None:
    """Read a file and compare.

    Raises:
        ValueError: if it is missing, has another size, or a piece has another checksum.
        OSError: if it cannot be read.
    """
    buffer = memoryview(bytearray(min(PIECE_BYTES, expected.num_bytes)))
    with CheckedReader(path, expected) as reader:
        for first in range(0, expected.num_bytes, PIECE_BYTES):
            reader.fill(buffer[: expected.num_bytes - first])
