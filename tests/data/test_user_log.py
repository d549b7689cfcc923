"""Samples of the next behaviour."""

from pathlib import Path

import numpy as np
import pytest

from recemb.data.prepared import Prepared
from recemb.data.user_log import Catalogue, Protocol, UserLog, write_samples

NUM_ITEMS = 60
FACTS = {"name": "test", "settings": {}, "sources": []}


def log_of(*sizes: int, seed: int = 0) -> UserLog:
    """Return users 100, 101, ... with so many behaviours; item i is of category i % 7."""
    items = np.random.default_rng(seed).integers(1, NUM_ITEMS, sum(sizes))
    return UserLog(
        users=100 + np.arange(len(sizes)),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        items=items,
        categories=items % 7,
    )


def prepare(folder: Path, *logs: UserLog, **protocol) -> Prepared:
    settings = {"min_behaviours": 20, "max_history": 10, **protocol}
    folder.mkdir()
    write_samples(lambda: logs, Protocol(**settings), folder, FACTS, name="test")
    return Prepared(folder)


def rows(prepared: Prepared, split: str, name: str) -> list[list[int]]:
    found: list[list[int]] = []
    for batch in prepared.batches(split, batch_size=1000):
        found += [ids.tolist() for ids in batch.features[name].to_dense()]
    return found


def test_positives_are_every_fifth_from_the_third_last_on() -> None:
    found = Protocol().positives(np.array([0, 300]))
    assert [300 - place for place in found["train"][1]] == list(range(93, 2, -5))
    assert found["val"][1].tolist() == [298]
    assert found["test"][1].tolist() == [299]


def test_positives_have_at_least_so_many_behaviours_before_them() -> None:
    protocol = Protocol(min_history=7, min_behaviours=20)
    _, places = protocol.positives(np.array([0, 5, 35]))["train"]
    assert [place - 5 for place in places] == [7, 12, 17, 22, 27]


def test_a_sample_is_a_behaviour_and_those_before_it(tmp_path: Path) -> None:
    log = log_of(40, 25)
    prepared = prepare(tmp_path / "set", log)
    ids = Catalogue.of([log], Protocol(min_behaviours=20)).items.encode(log.items)
    ends = [39, 64]
    assert rows(prepared, "test", "item")[::3] == [[ids[e]] for e in ends]
    histories = rows(prepared, "test", "item_history")
    assert histories[::3] == [ids[e - 10 : e].tolist() for e in ends]
    assert histories[1] == histories[0]


def test_histories_do_not_reach_into_the_user_before(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "set", log_of(30, 22), max_history=200)
    lengths = [len(ids) for ids in rows(prepared, "test", "item_history")]
    assert lengths == [29] * 3 + [21] * 3


def test_each_positive_comes_with_negatives_that_the_user_never_touched(tmp_path: Path) -> None:
    log = log_of(40, 25, 60)
    prepared = prepare(tmp_path / "set", log, num_negatives=4)
    vocabulary = Catalogue.of([log], Protocol(min_behaviours=20)).items
    for split in ("train", "val", "test"):
        batch = next(prepared.batches(split, batch_size=1000))
        drawn = batch.features["item"].values().numpy().reshape(-1, 5)[:, 1:]
        users = batch.groups.numpy().reshape(-1, 5)[:, 0] - 100
        assert batch.labels.numpy().reshape(-1, 5).tolist() == [[1, 0, 0, 0, 0]] * len(users)
        for user, others in zip(users, drawn, strict=True):
            own = log.items[log.offsets[user] : log.offsets[user + 1]]
            assert not set(others) & set(vocabulary.encode(own))
            assert (others > 0).all()


def test_negatives_are_drawn_by_popularity() -> None:
    log = log_of(4000, 4000)
    catalogue = Catalogue.of([log], Protocol())
    owners, nobodys = np.zeros(100_000, np.int64), np.array([-1])
    drawn = catalogue.draw_others(owners, nobodys, np.random.default_rng(0))
    share = np.bincount(drawn, minlength=len(catalogue.counts)) / len(drawn)
    expected = catalogue.counts / catalogue.counts.sum()
    # Five standard deviations of a share of 1/59 over 100,000 draws.
    np.testing.assert_allclose(share, expected, atol=5 * (1 / 59 / 100_000) ** 0.5)


def test_a_category_belongs_to_its_item_in_targets_and_histories(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "set", log_of(40, 60))
    pairs = set()
    for name in ("", "_history"):
        items = rows(prepared, "train", f"item{name}")
        kinds = rows(prepared, "train", f"category{name}")
        pairs |= {p for i, k in zip(items, kinds, strict=True) for p in zip(i, k, strict=True)}
    assert len(pairs) == len({item for item, _ in pairs})


def test_items_of_the_held_out_behaviours_alone_have_no_id() -> None:
    log = log_of(30)
    log.items[-1], log.items[-2] = 1000, 1001
    catalogue = Catalogue.of([log], Protocol(min_behaviours=20))
    assert catalogue.items.encode(np.array([1000, 1001])).tolist() == [0, 0]
    assert catalogue.counts.sum() == 28


def test_users_with_few_behaviours_are_left_out(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "set", log_of(19, 20, 5, 60))
    batch = next(prepared.batches("test", batch_size=100))
    assert batch.groups.tolist() == [101] * 3 + [103] * 3
    assert prepared.id_counts("item_history").numel() <= NUM_ITEMS


def test_the_group_may_be_the_category(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "set", log_of(40, 60), group="category")
    batch = next(prepared.batches("test", batch_size=100))
    assert batch.groups.tolist() == batch.features["category"].values().tolist()
    assert prepared.schema.group == "category"


def test_the_log_in_parts_has_the_same_positives_as_in_one(tmp_path: Path) -> None:
    first, second = log_of(40, 25), log_of(30, seed=1)
    both = UserLog(
        users=np.arange(3),
        offsets=np.array([0, 40, 65, 95]),
        items=np.concatenate([first.items, second.items]),
        categories=np.concatenate([first.categories, second.categories]),
    )
    one = prepare(tmp_path / "one", both)
    two = prepare(tmp_path / "two", first, second)
    for name in ("item_history", "category_history"):
        assert rows(one, "test", name) == rows(two, "test", name)
    assert rows(one, "test", "item")[::3] == rows(two, "test", "item")[::3]


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    made = [prepare(tmp_path / str(i), log_of(40, 60)).manifest["files"] for i in range(2)]
    assert made[0] == made[1]
    other = prepare(tmp_path / "other", log_of(40, 60), seed=1).manifest["files"]
    assert made[0] != other


def test_behaviours_of_one_time_keep_their_order() -> None:
    log = UserLog.sorted_from(
        users=np.array([2, 1, 2, 1, 2]),
        times=np.array([5, 1, 5, 0, 4]),
        items=np.array([10, 11, 12, 13, 14]),
        categories=np.zeros(5, np.int64),
    )
    assert log.users.tolist() == [1, 2]
    assert log.items.tolist() == [13, 11, 14, 10, 12]


def test_no_user_with_enough_behaviours_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no user has 500 behaviours"):
        prepare(tmp_path / "set", log_of(40), min_behaviours=500)


def test_a_user_who_has_touched_everything_is_an_error() -> None:
    catalogue = Catalogue.of([log_of(4000)], Protocol())
    size = len(catalogue.counts)
    with pytest.raises(ValueError, match="touched so many"):
        catalogue.draw_others(np.array([0]), np.arange(size), np.random.default_rng(0))


def test_too_few_behaviours_for_three_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="min_behaviours must be at least"):
        Protocol(min_history=20, min_behaviours=22)
