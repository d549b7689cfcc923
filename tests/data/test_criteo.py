"""Criteo's two publications, on files with made-up rows."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from recemb.data.criteo import INTEGERS, STRINGS, Criteo, raw_files
from recemb.data.prepared import Prepared


def line(label: int = 0, integers: Sequence[object] = (), strings: Sequence[str] = ()) -> str:
    """Return a line; columns not given are empty."""
    i = [str(v) for v in integers] + [""] * (13 - len(integers))
    c = list(strings) + [""] * (26 - len(strings))
    return "\t".join([str(label), *i, *c])


def write(path: Path, lines: Sequence[str]) -> Path:
    data = "".join(f"{row}\n" for row in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def numbered(num_lines: int, first: int = 0) -> list[str]:
    """Return lines whose I1 is their number, from `first` on."""
    return [line(i % 2, [i], [f"{i % 3:08x}"]) for i in range(first, first + num_lines)]


def all_rows(prepared: Prepared, split: str) -> torch.Tensor:
    batch = next(prepared.batches(split, batch_size=1000))
    return batch.dense


def ids(prepared: Prepared, feature: str, split: str = "train") -> list[int]:
    batch = next(prepared.batches(split, batch_size=1000))
    values: list[int] = batch.features[feature].values().tolist()
    return values


def kept_together(tmp_path: Path, lines: Sequence[str], **options: object) -> Prepared:
    """Return `lines` prepared as training rows, all of them."""
    raw = write(tmp_path / "train.txt", lines)
    settings = {"min_count": 1, "split": "time", "val": 0.0, "test": 0.0, **options}
    return Criteo(**settings).prepare(raw, tmp_path / "out")


def test_there_are_13_numbers_and_26_features(tmp_path: Path) -> None:
    prepared = kept_together(tmp_path, numbered(4))
    assert prepared.schema.dense == INTEGERS
    assert prepared.schema.feature_names == STRINGS


def test_numbers_are_signed_logarithms_by_default(tmp_path: Path) -> None:
    prepared = kept_together(tmp_path, [line(1, [7, -2, 0])])
    expected = [math.log(8), -math.log(3), 0.0]
    assert torch.allclose(all_rows(prepared, "train")[0, :3], torch.tensor(expected))


def test_a_missing_number_is_zero(tmp_path: Path) -> None:
    prepared = kept_together(tmp_path, [line(1, ["", 5])])
    assert all_rows(prepared, "train")[0, 0] == 0.0


def test_numbers_can_be_standardised_over_the_training_rows(tmp_path: Path) -> None:
    prepared = kept_together(tmp_path, numbered(9), numbers="standardise")
    values = all_rows(prepared, "train")[:, 0].numpy()
    raw = np.arange(9.0)
    np.testing.assert_allclose(values, (raw - raw.mean()) / raw.std(), rtol=1e-6)


def test_buckets_make_39_features_and_no_number(tmp_path: Path) -> None:
    lines = [line(0, [v]) for v in (3, 4, 20, 21, 1000, 2, 1, 0, "")]
    prepared = kept_together(tmp_path, lines, numbers="buckets")
    assert prepared.schema.dense == ()
    assert prepared.schema.feature_names == (*INTEGERS, *STRINGS)
    found = ids(prepared, "I1")
    # floor(log(x) ** 2) is 1 for 3 and 4, 8 for 20, 9 for 21, 47 for 1000.
    assert found[0] == found[1]
    assert len({found[0], *found[2:]}) == 8


def test_a_missing_string_is_a_value_of_its_own(tmp_path: Path) -> None:
    lines = [line(0, [], ["aaaaaaaa"]), line(0), line(1)]
    prepared = kept_together(tmp_path, lines)
    assert ids(prepared, "C1") == [2, 1, 1]


def test_rare_strings_share_id_zero(tmp_path: Path) -> None:
    lines = [line(0, [], [value]) for value in ("aa", "aa", "bb", "aa", "cc")]
    prepared = kept_together(tmp_path, lines, min_count=2)
    assert ids(prepared, "C1") == [1, 1, 0, 1, 0]


def test_vocabularies_can_be_limited_to_the_most_frequent(tmp_path: Path) -> None:
    lines = [line(0, [], [value]) for value in ("aa", "aa", "bb", "aa", "cc", "bb")]
    prepared = kept_together(tmp_path, lines, num_embeddings=3)
    assert ids(prepared, "C1") == [1, 1, 2, 1, 0, 2]


def test_hashing_needs_no_vocabulary(tmp_path: Path) -> None:
    prepared = kept_together(tmp_path, numbered(50), encoding="hash", num_embeddings=100)
    assert {c.num_embeddings for c in prepared.schema.categorical} == {100}
    found = ids(prepared, "C1")
    assert found[:3] == found[3:6]
    assert min(found) >= 1


def test_hashing_depends_on_the_seed(tmp_path: Path) -> None:
    lines = [line(0, [], [f"{i:08x}"]) for i in range(20)]
    one, other = (
        kept_together(tmp_path / str(s), lines, encoding="hash", num_embeddings=10**6, seed=s)
        for s in (1, 2)
    )
    assert ids(one, "C1") != ids(other, "C1")


def test_random_split_has_about_its_shares(tmp_path: Path) -> None:
    raw = write(tmp_path / "train.txt", numbered(5000))
    prepared = Criteo(val=0.1, test=0.2).prepare(raw, tmp_path / "out")
    sizes = [prepared.num_rows(s) for s in ("train", "val", "test")]
    assert sum(sizes) == 5000
    for size, share in zip(sizes, (0.7, 0.1, 0.2), strict=True):
        # Five standard deviations of a binomial count.
        assert abs(size - 5000 * share) < 5 * math.sqrt(5000 * share * (1 - share))


def test_split_by_time_takes_the_last_lines(tmp_path: Path) -> None:
    raw = write(tmp_path / "train.txt", numbered(20))
    out = tmp_path / "out"
    prepared = Criteo(numbers="identity", split="time", val=0.1, test=0.2).prepare(raw, out)
    assert all_rows(prepared, "train")[:, 0].tolist() == list(range(14))
    assert all_rows(prepared, "val")[:, 0].tolist() == [14, 15]
    assert all_rows(prepared, "test")[:, 0].tolist() == [16, 17, 18, 19]


def test_split_by_last_file_halves_the_last_day(tmp_path: Path) -> None:
    for day in (0, 2, 10):
        write(tmp_path / f"raw/day_{day}.gz", numbered(6, first=100 * day))
    prepared = Criteo(numbers="identity", split="last_file").prepare(
        tmp_path / "raw", tmp_path / "out"
    )
    assert all_rows(prepared, "train")[:, 0].tolist() == [*range(6), *range(200, 206)]
    assert all_rows(prepared, "val")[:, 0].tolist() == [1000, 1001, 1002]
    assert all_rows(prepared, "test")[:, 0].tolist() == [1003, 1004, 1005]


def test_split_by_last_file_needs_several_files(tmp_path: Path) -> None:
    raw = write(tmp_path / "train.txt", numbered(5))
    with pytest.raises(ValueError, match=r"'last_file' needs several day files.*split=time"):
        Criteo(split="last_file").prepare(raw, tmp_path / "out")


def test_day_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for day in (10, 9, 1):
        write(tmp_path / f"day_{day}.gz", ["x"])
    (tmp_path / "day_notes.txt").touch()
    assert [f.name for f in raw_files(tmp_path)] == ["day_1.gz", "day_9.gz", "day_10.gz"]


def test_an_unpacked_day_goes_before_its_packed_form(tmp_path: Path) -> None:
    for name in ("day_0.gz", "day_0"):
        write(tmp_path / name, ["x"])
    assert [f.name for f in raw_files(tmp_path)] == ["day_0"]


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_kaggles_file_is_found_in_its_folder(tmp_path: Path, name: str) -> None:
    assert raw_files(write(tmp_path / name, ["x"]).parent) == [tmp_path / name]


def test_a_folder_with_both_publications_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", ["x"])
    write(tmp_path / "day_0", ["x"])
    with pytest.raises(ValueError, match=r"train\.txt and day files; point data\.raw at one"):
        raw_files(tmp_path)


def test_a_folder_without_files_says_what_was_sought(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither train\.txt nor day_0.*fetch"):
        raw_files(tmp_path)


@pytest.mark.parametrize("option", ["numbers", "encoding", "split"])
def test_an_unknown_choice_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=rf"data 'criteo': {option} must be one of .*'nonsense'"):
        Criteo(**{option: "nonsense"})


def test_hashing_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoding 'hash' needs num_embeddings"):
        Criteo(encoding="hash")
