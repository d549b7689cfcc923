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


def verify(path: Path, expected: CheckedFile) -> None:
    """Read a file and compare.

    Raises:
        ValueError: if it is missing, has another size, or a piece has another checksum.
        OSError: if it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if (size := path.stat().st_size) != expected.num_bytes:
        raise ValueError(f"{path.name} has {size} bytes, expected {expected.num_bytes}")
    # Read, not mapped: a disk that fails is then an error, and no signal that ends the process.
    buffer = bytearray(min(PIECE_BYTES, size))
    with path.open("rb", buffering=0) as file:
        for index, crc in enumerate(expected.crc32):
            wanted = min(PIECE_BYTES, size - index * PIECE_BYTES)
            view = memoryview(buffer)[:wanted]
            filled = 0
            while filled < wanted and (num := file.readinto(view[filled:])):
                filled += num
            if filled < wanted or zlib.crc32(view) != crc:
                first = index * PIECE_BYTES
                raise ValueError(
                    f"{path.name} does not match its checksum between byte {first} and "
                    f"{first + wanted}"
                )
