"""Archives: members as they are, aligned, checked; damage has a message."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from recemb.checkpoint.archive import DESCRIPTION, Archive, ArchiveWriter

PAYLOAD = bytes(range(256)) * 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    with ArchiveWriter(path) as archive:
        archive.add("first", [PAYLOAD, b"", memoryview(b"end")])
        archive.add("folder/second", [b"second"])
        archive.describe({"note": "hello"})
    return path


def rewritten(path: Path, **members: bytes) -> Path:
    """Write the archive anew with other contents of some members; None's are left out."""
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()} | members
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            if content:
                new.writestr(name, content)
    return path


def redescribed(path: Path, **changes: object) -> Path:
    with zipfile.ZipFile(path) as old:
        description = json.loads(old.read(DESCRIPTION))
    return rewritten(path, **{DESCRIPTION: json.dumps(description | changes).encode()})


def test_members_and_description_come_back(path: Path) -> None:
    archive = Archive(path)
    assert archive.map("first").tobytes() == PAYLOAD + b"end"
    assert archive.map("folder/second").tobytes() == b"second"
    assert archive.description["note"] == "hello"
    assert archive.names() == ("first", "folder/second")


def test_any_zip_tool_reads_it(path: Path) -> None:
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["first", "folder/second", DESCRIPTION]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in opened.infolist())


def test_members_begin_at_multiples_of_64_bytes(path: Path) -> None:
    data = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        for entry in opened.infolist()[:2]:
            lengths = struct.unpack("<HH", data[entry.header_offset + 26 :][:4])
            first = entry.header_offset + 30 + sum(lengths)
            assert first % 64 == 0
            assert data[first : first + 4] in (PAYLOAD[:4], b"seco")


def test_the_same_content_gives_the_same_file(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    with ArchiveWriter(again) as archive:
        archive.add("first", [PAYLOAD + b"end"])
        archive.add("folder/second", [b"sec", b"ond"])
        archive.describe({"note": "hello"})
    assert again.read_bytes() == path.read_bytes()


def test_what_is_written_to_a_map_stays_out_of_the_file(path: Path) -> None:
    before = path.read_bytes()
    Archive(path).map("first")[:] = 0
    assert path.read_bytes() == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file"):
        Archive(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is no export of recemb"):
        Archive(path)


def test_a_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="it is no export of recemb"):
        Archive(path)


def test_a_newer_format_is_refused_with_both_versions(path: Path) -> None:
    with pytest.raises(ValueError, match=r"has format 2, but this recemb reads up to 1"):
        Archive(redescribed(path, format_version=2))


@pytest.mark.parametrize("changes", [{"format": "other"}, {"format_version": "1"}], ids=str)
def test_a_foreign_format_is_refused(path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="its format is"):
        Archive(redescribed(path, **changes))


@pytest.mark.parametrize("members", [None, {"first": {"bytes": 3}}, {"first": 3}], ids=str)
def test_a_description_without_its_members_is_refused(path: Path, members: object) -> None:
    with pytest.raises(ValueError, match="it is no export of recemb, or not whole"):
        Archive(redescribed(path, members=members))


def test_a_changed_byte_fails_the_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(PAYLOAD) + 700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="member first does not match its checksum"):
        Archive(path).map("first")


def test_a_missing_member_is_named(path: Path) -> None:
    archive = Archive(rewritten(path, **{"folder/second": b""}))
    with pytest.raises(ValueError, match="member folder/second is missing"):
        archive.map("folder/second")


def test_a_member_of_another_size_is_refused(path: Path) -> None:
    archive = Archive(rewritten(path, first=PAYLOAD))
    with pytest.raises(ValueError, match="member first has 1280 bytes"):
        archive.map("first")


def test_a_compressed_member_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in contents.items():
            new.writestr(name, content)
    with pytest.raises(ValueError, match="stored in way 8"):
        Archive(path).map("first")


def test_a_member_may_be_empty(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "empty") as archive:
        archive.add("nothing", [])
        archive.describe({})
    assert np.array_equal(Archive(tmp_path / "empty").map("nothing"), np.empty(0, np.uint8))
