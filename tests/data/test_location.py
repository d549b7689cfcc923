"""Finding raw files under the publisher's names."""

from pathlib import Path

import pytest

from recemb.data.location import file_among, one_of


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (["a.txt", "a.txt.gz", "b.txt"], "a.txt"),
        (["a.txt.gz", "b.txt"], "a.txt.gz"),
        (["b.txt.gz", "c.txt"], "b.txt.gz"),
    ],
)
def test_earlier_names_and_plain_files_go_first(
    tmp_path: Path, present: list[str], found: str
) -> None:
    for name in present:
        (tmp_path / name).touch()
    assert one_of(tmp_path, ["a.txt", "b.txt"]) == tmp_path / found
    assert file_among("clicks", tmp_path, ["a.txt", "b.txt"], "") == tmp_path / found


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    assert one_of(tmp_path, ["a.txt"]) is None


def test_missing_file_names_data_folder_and_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        file_among("clicks", tmp_path, ["a.txt", "b.txt"], "fetch it")
    assert str(raised.value) == (
        f"data 'clicks': {tmp_path} holds no a.txt or b.txt, plain or .gz; fetch it"
    )


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.touch()
    with pytest.raises(ValueError, match=r"a\.txt is a file, but raw must be the folder"):
        file_among("clicks", file, ["a.txt"], "fetch it")
