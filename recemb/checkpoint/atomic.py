"""Files and folders that appear whole or not at all."""

import os
import re
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

    Killed at any moment, its writer leaves the folder that was there before, or the new one. For
    the moment between two renames the one before lies under another name, where `standing` finds
    it. What else is left is never read, and removed by the next writer of the same folder.

    Args:
        path: where it appears. What is there is replaced.
        owned: matches the names of folders beside it of which this is the only writer, too: what is
            left of those goes at the same time. None if there are none.

    Attributes:
        unfinished: where to write.
    """

    _UNFINISHED, _REPLACED, _REMOVED = ".unfinished-", ".replaced-", ".removed-"

    def __init__(self, path: Path, *, owned: re.Pattern[str] | None = None) -> None:
        self.path = path
        self.unfinished = _beside(path, self._UNFINISHED)
        self._owned = owned

    def begin(self) -> None:
        """Make the place to write, and clear away what writers before left unfinished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tidy(self.path)
        for path in self._left_behind():
            self._tidy(path)
        self.unfinished.mkdir()

    def commit(self) -> None:
        """Let the folder appear; its files are flushed to the disk already."""
        if self.path.exists():
            self.path.rename(_beside(self.path, self._REPLACED))
        self.unfinished.rename(self.path)
        self._forget_replaced(self.path)
        sync(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written; what was to be replaced is there again."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if (standing := self.standing(self.path)) != self.path:
            standing.rename(self.path)

    @classmethod
    def standing(cls, path: Path) -> Path:
        """Return where a folder is to be read: `path`, or its place between two renames.

        Nothing is renamed, for its writer may be alive.
        """
        replaced = _beside(path, cls._REPLACED)
        return replaced if not path.exists() and replaced.is_dir() else path

    @classmethod
    def names(cls, parent: Path) -> list[str]:
        """Return the names of the folders in a folder, those between two renames included."""
        found = (path.name.removeprefix(cls._REPLACED) for path in parent.iterdir())
        return list(dict.fromkeys(found))

    @classmethod
    def remove(cls, path: Path) -> None:
        """Remove a folder; it vanishes at once, whatever happens during the removal."""
        removed = _beside(path, cls._REMOVED)
        if path.exists():
            # Else it would stand for what is gone.
            cls._forget_replaced(path)
        shutil.rmtree(removed, ignore_errors=True)
        cls.standing(path).rename(removed)
        shutil.rmtree(removed)

    @classmethod
    def _forget_replaced(cls, path: Path) -> None:
        """Remove what `path` has replaced; it vanishes at once, so it is never there in part."""
        replaced, removed = _beside(path, cls._REPLACED), _beside(path, cls._REMOVED)
        if replaced.exists():
            shutil.rmtree(removed, ignore_errors=True)
            replaced.rename(removed)
            shutil.rmtree(removed)

    @classmethod
    def _tidy(cls, path: Path) -> None:
        """Clear away what a writer of a folder left who was killed."""
        for mark in (cls._UNFINISHED, cls._REMOVED):
            if (left := _beside(path, mark)).exists():
                shutil.rmtree(left)
        if (standing := cls.standing(path)) != path:
            standing.rename(path)
        cls._forget_replaced(path)

    def _left_behind(self) -> Iterator[Path]:
        """Yield the owned folders beside this one of which a writer left something."""
        for left in list(self.path.parent.iterdir()) if self._owned else ():
            for mark in (self._UNFINISHED, self._REPLACED, self._REMOVED):
                name = left.name.removeprefix(mark)
                if name != left.name and self._owned and self._owned.fullmatch(name):
                    yield self.path.with_name(name)


def _beside(path: Path, mark: str) -> Path:
    return path.with_name(f"{mark}{path.name}")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
