"""Preparing is safe: whole or not at all, once, and never from changed files."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recemb.data.encoded import EncodedRows
from recemb.data.preparation import prepare_once
from recemb.data.prepared import Prepared
from recemb.data.schema import Schema
from recemb.data.writer import Writer

SCHEMA = Schema(dense=("x",), categorical=(), label="y")


def write(folder: Path, facts: Mapping[str, Any], num_rows: int = 5) -> None:
    rows = EncodedRows(
        labels=np.zeros(num_rows, np.uint8),
        dense=np.ones((num_rows, 1), np.float32),
        ids=np.empty((num_rows, 0), np.int32),
    )
    with Writer(folder, SCHEMA) as writer:
        writer.append("train", rows)
        writer.finish(facts)


class Calls:
    """A write that counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.num_calls += 1
        write(folder, facts)


def prepare(out: Path, calls: Calls, **changes: Any) -> Prepared:
    given: dict[str, Any] = {"settings": {"a": {"b": 1}}, "sources": (), **changes}
    return prepare_once(out, name="toy", write=calls, **given)


def test_complete_and_unchanged_set_is_not_written_again(tmp_path: Path) -> None:
    raw, calls = tmp_path / "raw", Calls()
    raw.write_text("data")
    for _ in range(2):
        prepare(tmp_path / "out", calls, sources=[raw])
    assert calls.num_calls == 1


def test_changed_setting_is_named(tmp_path: Path) -> None:
    prepare(tmp_path / "out", Calls())
    with pytest.raises(ValueError, match=r"setting 'a\.b' was 1 and is now 2; .*overwrite=true"):
        prepare(tmp_path / "out", Calls(), settings={"a": {"b": 2}})


def test_overwrite_replaces_a_set_with_other_settings(tmp_path: Path) -> None:
    prepare(tmp_path / "out", Calls())
    found = prepare(tmp_path / "out", Calls(), settings={"a": 2}, overwrite=True)
    assert found.manifest["settings"] == {"a": 2}
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_changed_size_of_a_raw_file_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_text("data")
    prepare(tmp_path / "out", Calls(), sources=[raw])
    raw.write_text("more data")
    with pytest.raises(ValueError, match="raw had 4 bytes and now has 9"):
        prepare(tmp_path / "out", Calls(), sources=[raw])


def test_changed_content_is_noticed_though_size_and_times_are_set_back(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_text("data")
    times = (raw.stat().st_atime_ns, raw.stat().st_mtime_ns)
    prepare(tmp_path / "out", Calls(), sources=[raw])
    raw.write_text("dat4")
    os.utime(raw, ns=times)
    with pytest.raises(ValueError, match=r"the content of .*raw has changed"):
        prepare(tmp_path / "out", Calls(), sources=[raw])


def test_touched_file_counts_as_unchanged(tmp_path: Path) -> None:
    raw, calls = tmp_path / "raw", Calls()
    raw.write_text("data")
    prepare(tmp_path / "out", calls, sources=[raw])
    os.utime(raw)
    prepare(tmp_path / "out", calls, sources=[raw])
    assert calls.num_calls == 1


def test_file_that_changes_during_preparation_is_noticed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_text("data")

    def write_and_change(folder: Path, facts: Mapping[str, Any]) -> None:
        write(folder, facts)
        raw.write_text("other data")

    with pytest.raises(ValueError, match="while it was being prepared"):
        prepare_once(
            tmp_path / "out", name="toy", settings={}, sources=[raw], write=write_and_change
        )
    assert not (tmp_path / "out").exists()


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path, facts: Mapping[str, Any]) -> None:
        write(folder, facts)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        prepare_once(tmp_path / "out", name="toy", settings={}, sources=(), write=fail)
    assert {p.name for p in tmp_path.iterdir()} == {".out.lock"}


def test_failed_overwrite_keeps_the_old_set(tmp_path: Path) -> None:
    def fail(folder: Path, facts: Mapping[str, Any]) -> None:
        raise OSError("disk full")

    prepare(tmp_path / "out", Calls())
    with pytest.raises(OSError, match="disk full"):
        prepare_once(
            tmp_path / "out", name="toy", settings={}, sources=(), write=fail, overwrite=True
        )
    Prepared(tmp_path / "out").verify()


def test_folder_with_foreign_files_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="it is not deleted for you"):
        prepare(tmp_path / "out", Calls(), overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_left_over_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    prepare(tmp_path / "out", Calls()).verify()
    assert not (tmp_path / ".out.partial").exists()


_WORKER = """
import os, signal, sys
from pathlib import Path
from recemb.data.table import Table
from recemb.data.writer import Writer

folder, last_write = Path(sys.argv[1]), int(sys.argv[2])
append, writes = Writer.append, []

def append_or_die(self, split, rows):
    writes.append(split)
    if len(writes) == last_write:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, split, rows)

Writer.append = append_or_die
print("ready", flush=True)
Table(
    label="y", files=["a.csv"], dense={"x": "standardise"}, categorical={"c": "vocabulary"},
    split={"rule": "ratio", "val": 0.1, "test": 0.1}, text={"block_bytes": 20000},
).prepare(folder, folder / "out").verify()
"""


def start(folder: Path, last_write: int = -1) -> "subprocess.Popen[str]":
    """Start preparing; at its `last_write`-th write the process kills itself."""
    with contextlib.ExitStack() as on_error:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER, str(folder), str(last_write)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        on_error.callback(process.kill)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n"
        on_error.pop_all()
    return process


def write_csv(folder: Path, num_rows: int) -> None:
    lines = ["y,x,c", *(f"{i % 2},{i},v{i % 97}" for i in range(num_rows))]
    (folder / "a.csv").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("last_write", [1, 2, 30])
def test_killed_while_writing_a_set_does_not_open_and_the_next_run_succeeds(
    tmp_path: Path, last_write: int
) -> None:
    write_csv(tmp_path, 50_000)
    assert start(tmp_path, last_write).wait() == -signal.SIGKILL
    for half in ("out", ".out.partial"):
        with pytest.raises(FileNotFoundError, match="no complete prepared set"):
            Prepared(tmp_path / half)
    assert start(tmp_path).wait() == 0
    Prepared(tmp_path / "out").verify()


@pytest.mark.slow
def test_killed_at_any_moment_a_half_set_never_opens_and_the_next_run_succeeds(
    tmp_path: Path,
) -> None:
    write_csv(tmp_path, 100_000)
    started = time.monotonic()
    assert start(tmp_path).wait() == 0
    whole_seconds = time.monotonic() - started
    expected = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    moments = random.Random(0)
    for _ in range(10):
        shutil.rmtree(tmp_path / "out")
        process = start(tmp_path)
        time.sleep(moments.random() * whole_seconds / 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():  # it had finished: then it is whole
            Prepared(tmp_path / "out").verify()
        assert start(tmp_path).wait() == 0
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["files"] == expected


@pytest.mark.slow
def test_processes_that_prepare_the_same_set_at_once_all_succeed(tmp_path: Path) -> None:
    write_csv(tmp_path, 50_000)
    processes = [start(tmp_path) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    Prepared(tmp_path / "out").verify()
