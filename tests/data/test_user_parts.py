"""Logs of behaviours in Taobao's and Tmall's formats, on files with made-up rows."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from recemb.data.taobao import Taobao
from recemb.data.tmall import Tmall
from recemb.data.user_parts import UserParts

NUM_USERS, LENGTH = 12, 30
SETTINGS = {"min_behaviours": 20, "max_history": 8}


def behaviours() -> dict[str, np.ndarray]:
    """Return views and others, in any order of time."""
    draw = np.random.default_rng(0)
    size = NUM_USERS * LENGTH
    item = draw.integers(1000, 1200, size)
    return {
        "user": draw.permutation(np.repeat(np.arange(NUM_USERS) + 7, LENGTH)),
        "item": item,
        "category": item % 11,
        "time": draw.permutation(size) + 1,
        "is_view": draw.random(size) < 0.9,
    }


def taobao(folder: Path, *, extra: str = "") -> Path:
    b = behaviours()
    lines = [
        f"{u},{i},{c},{'pv' if v else 'buy'},{t}"
        for u, i, c, v, t in zip(
            b["user"], b["item"], b["category"], b["is_view"], b["time"], strict=True
        )
    ]
    folder.mkdir()
    (folder / "UserBehavior.csv").write_text("\n".join([*lines, extra, ""]))
    return folder


def tmall(folder: Path) -> Path:
    b = behaviours()
    lines = [
        f"{u},{i},{c},{i % 5},,{t},{0 if v else 2}"
        for u, i, c, v, t in zip(
            b["user"], b["item"], b["category"], b["is_view"], b["time"], strict=True
        )
    ]
    header = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"
    folder.mkdir()
    packed = gzip.compress("\n".join([header, *lines, ""]).encode())
    (folder / "user_log_format1.csv.gz").write_bytes(packed)
    return folder


def views_of(user: int) -> list[int]:
    """Return what a user viewed, in order of time."""
    b = behaviours()
    mask = (b["user"] == user) & b["is_view"]
    found: list[int] = b["item"][mask][np.argsort(b["time"][mask])].tolist()
    return found


@pytest.mark.parametrize(("data", "write"), [(Taobao, taobao), (Tmall, tmall)])
def test_users_are_their_views_in_order_of_time(tmp_path: Path, data, write) -> None:
    prepared = data(**SETTINGS).prepare(write(tmp_path / "raw"), tmp_path / "out")
    keys = np.fromfile(tmp_path / "out/encoders/item.keys.i64", "<i8")
    ids = {int(key): number for number, key in enumerate(keys, start=1)}
    batch = next(prepared.batches("test", batch_size=1000))
    histories = batch.features["item_history"].to_dense()
    users = batch.groups.tolist()
    assert len(set(users)) == sum(len(views_of(u + 7)) >= 20 for u in range(NUM_USERS))
    for row in range(0, len(users), 3):
        expected = [ids.get(i, 0) for i in views_of(users[row])[-9:-1]]
        assert histories[row].tolist() == expected


def test_both_formats_give_the_same_samples(tmp_path: Path) -> None:
    made = [
        d(**SETTINGS).prepare(w(tmp_path / w.__name__), tmp_path / f"{w.__name__}.out")
        for d, w in ((Taobao, taobao), (Tmall, tmall))
    ]
    files = [p.manifest["files"] for p in made]
    assert files[0] == files[1]


def test_all_behaviours_of_a_user_are_in_one_part(tmp_path: Path) -> None:
    b = behaviours()
    with UserParts(tmp_path, num_parts=5) as parts:
        for half in np.array_split(np.arange(len(b["user"])), 2):
            parts.append({k: b[k][half] for k in ("user", "time", "item", "category")})
        logs = list(parts.logs())
    users = np.concatenate([log.users for log in logs])
    assert len(logs) > 1
    assert sorted(users) == list(range(7, 7 + NUM_USERS))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_number_is_an_error_with_its_line(tmp_path: Path) -> None:
    raw = taobao(tmp_path / "raw", extra="3,,5,pv,9")
    line = NUM_USERS * LENGTH + 1
    with pytest.raises(ValueError, match=rf"UserBehavior\.csv:{line}: column 'item' is missing"):
        Taobao(**SETTINGS).prepare(raw, tmp_path / "out")


def test_bad_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    raw = taobao(tmp_path / "raw", extra="3,,5,pv,9\n4,x,5,pv,9")
    prepared = Taobao(**SETTINGS, on_bad_line="skip").prepare(raw, tmp_path / "out")
    clean = Taobao(**SETTINGS).prepare(taobao(tmp_path / "clean"), tmp_path / "out2")
    assert sum(prepared.manifest["bad_lines"].values()) == 2
    assert prepared.manifest["files"] == clean.manifest["files"]


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"UserBehavior\.csv.*tianchi"):
        Taobao(**SETTINGS).prepare(tmp_path, tmp_path / "out")
