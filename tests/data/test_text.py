"""Delimited text: what is read, and what is said about lines that are wrong."""

import gzip
from pathlib import Path

import pytest

from recemb.data.column import Kind
from recemb.data.text import DelimitedText

KINDS: dict[str, Kind] = {"a": "int", "b": "string", "c": "float"}


def rows(source: DelimitedText, on_bad_line: str = "raise") -> list[tuple[object, ...]]:
    found = []
    for chunk in source.chunks(KINDS, on_bad_line):
        columns = [chunk.table.column(c).to_pylist() for c in "abc"]
        found += list(zip(chunk.lines.tolist(), *columns, strict=True))
    return found


def source(path: Path, text: str | bytes, **changes: object) -> DelimitedText:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return DelimitedText([path], **changes)


GOOD = "a,b,c\n1,x,0.5\n,,\n-3,é,1e3\n"
GOOD_ROWS = [(2, 1, "x", 0.5), (3, None, None, None), (4, -3, "é", 1000.0)]


@pytest.mark.parametrize("block_bytes", [1, 5, 14, 1000])
def test_rows_do_not_depend_on_the_block_size(tmp_path: Path, block_bytes: int) -> None:
    assert rows(source(tmp_path / "f", GOOD, block_bytes=block_bytes)) == GOOD_ROWS


@pytest.mark.parametrize(
    "text",
    [
        GOOD.removesuffix("\n"),
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("x", '"x"'),
    ],
)
def test_line_ends_mark_and_quotes_make_no_difference(tmp_path: Path, text: str) -> None:
    assert rows(source(tmp_path / "f", text)) == GOOD_ROWS


def test_gzip_is_recognised_by_its_content(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode())
    assert rows(source(tmp_path / "plain.csv", packed)) == GOOD_ROWS


def test_delimiter_of_two_characters(tmp_path: Path) -> None:
    text = "1::x::0.5\n2::y,z::1\n"
    found = rows(source(tmp_path / "f", text, delimiter="::", column_names=["a", "b", "c"]))
    assert found == [(1, 1, "x", 0.5), (2, 2, "y,z", 1.0)]


def test_other_encodings_are_converted(tmp_path: Path) -> None:
    text = "a,b,c\n1,é,2\n".encode("latin-1")
    assert rows(source(tmp_path / "f", text, encoding="latin-1")) == [(2, 1, "é", 2.0)]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    text = "a,b,c\n\n1,x,1\n\r\n2,y,2\n\n"
    assert rows(source(tmp_path / "f", text)) == [(3, 1, "x", 1.0), (5, 2, "y", 2.0)]


def test_value_longer_than_a_parse_block_is_read(tmp_path: Path) -> None:
    long = "x" * (3 << 20)
    assert rows(source(tmp_path / "f", f"a,b,c\n1,{long},2\n")) == [(2, 1, long, 2.0)]


BAD_LINES = [
    ("1,x", r":3: the line has 2 columns instead of 3 \(column 'b'", "wrong number of columns"),
    ("1,x,2,3", r":3: the line has 4 columns instead of 3", "wrong number of columns"),
    ("one,x,2", r":3: column 'a' has value 'one', which is not a whole number", None),
    ("1.5,x,2", r":3: column 'a' has value '1.5', which is not a whole number", None),
    ("9223372036854775808,x,2", r":3: column 'a' .* which does not fit into 64 bits", None),
    ("1,x,0.5.5", r":3: column 'c' has value '0.5.5', which is not a number", None),
    (b"1,\xff\xfe,2", r":3: column 'b' has the bytes b'\\xff\\xfe,2', which are not utf-8", None),
]


@pytest.mark.parametrize(("line", "message", "reason"), BAD_LINES)
def test_bad_line_is_named_with_file_line_column_and_value(
    tmp_path: Path, line: str | bytes, message: str, reason: str | None
) -> None:
    data = line.encode() if isinstance(line, str) else line
    path = tmp_path / "clicks.csv"
    with pytest.raises(ValueError, match="clicks.csv" + message) as raised:
        rows(source(path, b"a,b,c\n1,x,2\n" + data + b"\n3,y,4\n"))
    assert "on_bad_line=skip" in str(raised.value)


@pytest.mark.parametrize(("line", "message", "reason"), BAD_LINES)
def test_skipped_lines_are_counted_and_the_others_kept(
    tmp_path: Path, line: str | bytes, message: str, reason: str | None
) -> None:
    data = line.encode() if isinstance(line, str) else line
    text = source(tmp_path / "f", b"a,b,c\n1,x,2\n" + data + b"\n3,y,4\n")
    assert rows(text, "skip") == [(2, 1, "x", 2.0), (4, 3, "y", 4.0)]
    (chunk,) = text.chunks(KINDS, "skip")
    assert chunk.num_skipped.total() == 1
    if reason is not None:
        assert chunk.num_skipped[reason] == 1


def test_block_of_only_bad_lines_gives_no_rows(tmp_path: Path) -> None:
    assert rows(source(tmp_path / "f", "a,b,c\nx\ny\n"), "skip") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"a,b,c\n", "has a header but no rows"),
        (b"a,b,b\n1,2,3\n", r"the header names \['b'\] twice"),
        (b"a,b\n1,2\n", r"there is no column \['c'\]; the file has \['a', 'b'\]"),
        (b"a,\xff,c\n1,2,3\n", "the header is not utf-8"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(source(tmp_path / "f", content))


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode() * 1000)
    with pytest.raises(ValueError, match=r"clicks\.gz: the compressed file is truncated"):
        rows(source(tmp_path / "clicks.gz", packed[: len(packed) // 2]))


def test_num_rows_bounds_the_row_numbers(tmp_path: Path) -> None:
    text = source(tmp_path / "f", "a,b,c\n\n1,x,1\n2,y,2", block_bytes=3)
    assert text.num_rows() == 3
    assert max(r for c in text.chunks(KINDS, "raise") for r in c.rows.tolist()) == 2
