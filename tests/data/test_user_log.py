"""Samples of the next behaviour."""

import hashlib
import json
from dataclasses import asdict
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


RARE_CATEGORY = 7


def half_rare_log() -> UserLog:
    """Return 150 users half of whose 40 behaviours are of items that hardly occur again."""
    rng = np.random.default_rng(0)
    is_rare = rng.random(6000) < 0.5
    items = np.where(is_rare, rng.integers(1000, 6000, 6000), rng.integers(0, 100, 6000))
    return UserLog(
        users=np.arange(150),
        offsets=40 * np.arange(151),
        items=items,
        categories=np.where(items < 1000, items % 5, RARE_CATEGORY),
    )


def test_items_without_an_id_are_drawn_as_often_as_they_occur(tmp_path: Path) -> None:
    log = half_rare_log()
    batch = next(prepare(tmp_path / "set", log, min_count=8).batches("train", batch_size=9999))
    is_rare = (batch.features["item"].values() == 0).numpy()
    seen = np.concatenate([log.items[first : first + 38] for first in log.offsets[:-1]])
    keys, counts = np.unique(seen, return_counts=True)
    assert counts[keys >= 1000].max() < 8 <= counts[keys < 1000].min()
    shares = []
    for first in log.offsets[:-1]:
        others = ~np.isin(keys, log.items[first : first + 40])
        shares.append(counts[others & (keys >= 1000)].sum() / counts[others].sum())
    found = is_rare[batch.labels.numpy() == 0]
    # Five standard deviations.
    bound = 5 * (0.25 / len(found)) ** 0.5
    np.testing.assert_allclose(found.mean(), np.mean(shares), atol=bound)


def test_an_item_without_an_id_keeps_its_category_as_a_negative(tmp_path: Path) -> None:
    log = half_rare_log()
    prepared = prepare(tmp_path / "set", log, min_count=8)
    rare = Catalogue.of([log], Protocol(min_behaviours=20)).categories.encode(
        np.array([RARE_CATEGORY])
    )
    for split in ("train", "val", "test"):
        batch = next(prepared.batches(split, batch_size=9999))
        item, category = (batch.features[name].values() for name in ("item", "category"))
        assert ((item == 0) == (category == int(rare[0]))).all()


def test_a_negative_without_an_id_is_none_of_the_users_items() -> None:
    log = UserLog(
        users=np.arange(2),
        offsets=np.array([0, 6, 12]),
        items=np.array([1, 2, 1, 1, 1, 1, 4, 3, 4, 4, 4, 4]),
        categories=np.zeros(12, np.int64),
    )
    catalogue = Catalogue.of([log], Protocol(min_behaviours=6, min_count=3))
    assert catalogue.items.encode(np.array([1, 2, 3, 4])).tolist() == [1, 0, 0, 2]
    own = np.sort(catalogue.pool.encode(np.array([1, 2])).astype(np.int64))
    drawn = catalogue.draw_others(np.zeros(50, np.int64), own, np.random.default_rng(0))
    assert set(catalogue.pool.keys[drawn - 1]) == {3, 4}


def test_without_rare_items_the_draws_are_those_of_old(tmp_path: Path) -> None:
    """Tables of results that were measured before rare items were drawn stay valid."""
    logs = (log_of(40, 25), log_of(30, seed=1))
    files = prepare(tmp_path / "set", *logs, num_negatives=4, seed=3).manifest["files"]
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    assert digest == "100a6a5cce22187b30a56a0c6a90c82332fbf6615a488bfe49e01ec0343a8c17"


def test_sets_of_before_rare_items_were_drawn_are_not_taken_for_new_ones() -> None:
    assert Protocol().settings() == asdict(Protocol())
    assert Protocol(min_count=2).settings() != asdict(Protocol(min_count=2))


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
