"""Files and folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` if the body succeeds and goes if it fails.

    The content is on the disk before the name is: killed at any moment, that leaves the file that
    was there before, or the new one. A folder that does not exist is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


class WholeFolder:
    """A folder that is filled under another name and appears when it is whole.

    Killed at any moment, its writer leaves the folder that was there before (or, for the moment
    between two renames, none), or the new one; what else it leaves is never read, and removed by
    the next writer in the same place.

    Args:
        path: where it appears. What is there is replaced.

    Attributes:
        unfinished: where to write.
    """

    _MARK = ".unfinished-"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unfinished = path.with_name(f"{self._MARK}{path.name}")

    def begin(self) -> None:
        """Make the place to write, and remove what writers before left unfinished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f"{self._MARK}*"):
            shutil.rmtree(left)
        self.unfinished.mkdir()

    def commit(self) -> None:
        """Let the folder appear; its files are flushed to the disk already."""
        if self.path.exists():
            replaced = self.path.with_name(f"{self._MARK}replaced-{self.path.name}")
            self.path.rename(replaced)
            self.unfinished.rename(self.path)
            shutil.rmtree(replaced)
        else:
            self.unfinished.rename(self.path)
        sync(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    @classmethod
    def remove(cls, path: Path) -> None:
        """Remove a folder; it vanishes at once, whatever happens during the removal."""
        doomed = path.with_name(f"{cls._MARK}removed-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
