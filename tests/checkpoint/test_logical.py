import dataclasses
import json
import re
from collections.abc import Sequence

import pytest
import torch

from recemb.checkpoint.logical import OtherTablesError, check_identity, differences
from recemb.methods.robe import ROBE
from recemb.methods.unified import Unified
from recemb.tables import Budget, Method, TableOptimizer, Tables, TableSpec, full_tables
from recemb.tables.joined import JoinedTables
from recemb.tables.optimizer import Kind

USER = TableSpec(name="user", num_embeddings=50, embedding_dim=8, feature_names=("user",))
ITEM = TableSpec(name="item", num_embeddings=70, embedding_dim=8, feature_names=("item", "last"))


def built(method: Method, specs: Sequence[TableSpec] = (USER, ITEM), seed: int = 0) -> Tables:
    return method.build(
        specs,
        {},
        Budget(ratio=0.5),
        optimizer=TableOptimizer(),
        seed=seed,
        device=torch.device("cpu"),
    )


def complaint(before: Tables, now: Tables) -> str:
    saved = json.loads(json.dumps(before.identity()))
    with pytest.raises(OtherTablesError) as caught:
        check_identity(saved, now.identity(), owner="checkpoint c")
    return str(caught.value)


def test_tables_built_alike_take_each_others_state() -> None:
    for make in (
        lambda: built(Unified(exact_below=0)),
        lambda: built(ROBE()),
        lambda: full_tables([USER]),
    ):
        check_identity(json.loads(json.dumps(make().identity())), make().identity(), owner="c")


def test_what_was_written_before_there_were_identities_is_taken() -> None:
    check_identity(None, full_tables([USER]).identity(), owner="c")


def test_other_hash_seeds_are_refused() -> None:
    text = complaint(built(Unified(exact_below=0, hash_seed=5)), built(Unified(exact_below=0)))
    assert text.startswith("checkpoint c was written by other tables: plan.outputs.user.lookups.0")
    assert re.search(r"seed was \d+ and is \d+; ", text)


def joined(hash_seed: int = 0, kind: Kind = "adagrad") -> JoinedTables:
    hashed = Unified(exact_below=0, hash_seed=hash_seed)
    item = full_tables([ITEM], optimizer=TableOptimizer(kind=kind))
    return JoinedTables([USER, ITEM], {"some": built(hashed, [USER]), "others": item})


def test_other_hash_seeds_of_a_part_are_refused() -> None:
    check_identity(joined(5).identity(), joined(5).identity(), owner="c")
    text = complaint(joined(5), joined())
    assert re.search(
        r"joined\.some\.plan\.outputs\.user\.lookups\.0.*seed was \d+ and is \d+", text
    )
    assert "joined.others.optimizer was adam and is sgd" in complaint(
        joined(kind="adam"), joined(kind="sgd")
    )


def test_parts_that_were_written_without_their_identities_are_taken_with_a_warning() -> None:
    saved = {k: v for k, v in joined(5).identity().items() if k != "joined"}
    with pytest.warns(UserWarning, match="checkpoint c says nothing of how the parts of"):
        check_identity(saved, joined().identity(), owner="checkpoint c")
    # What it says is checked all the same.
    other = {**saved, "method": "Hashing"}
    with (
        pytest.warns(UserWarning, match="says nothing"),
        pytest.raises(OtherTablesError, match="method was Hashing and is PerRole"),
    ):
        check_identity(other, {**joined().identity(), "method": "PerRole"}, owner="c")


def test_tables_that_are_not_joined_are_not_taken_for_joined_ones() -> None:
    full = full_tables([USER, ITEM])
    with pytest.raises(OtherTablesError, match="joined was None and is"):
        check_identity(full.identity(), joined().identity(), owner="c")
    with pytest.raises(OtherTablesError, match="plan was None and is"):
        check_identity(joined().identity(), full.identity(), owner="c")


def test_other_sizes_are_refused_by_name() -> None:
    larger = dataclasses.replace(ITEM, num_embeddings=71)
    text = complaint(full_tables([USER, ITEM]), full_tables([USER, larger]))
    assert "tables.item.num_embeddings was 70 and is 71" in text


def test_other_feature_names_and_orders_are_refused() -> None:
    renamed = dataclasses.replace(ITEM, feature_names=("item", "first"))
    text = complaint(full_tables([USER, ITEM]), full_tables([USER, renamed]))
    assert "tables.item.feature_names were ['item', 'last'] and are ['item', 'first']" in text
    text = complaint(full_tables([USER, ITEM]), full_tables([ITEM, USER]))
    assert "tables were ['user', 'item'] and are ['item', 'user']" in text


def test_another_method_is_refused() -> None:
    text = complaint(full_tables([USER, ITEM]), built(Unified(exact_below=0)))
    assert "plan.tables were ['user', 'item'] and are " in text
    assert "sources" in complaint(full_tables([USER, ITEM]), built(ROBE()))


def test_another_optimizer_is_refused() -> None:
    before = full_tables([USER], optimizer=TableOptimizer(kind="adam"))
    now = full_tables([USER], optimizer=TableOptimizer(kind="adagrad"))
    assert "optimizer was adam and is adagrad" in complaint(before, now)


def test_another_backend_or_learning_rate_is_no_difference() -> None:
    before = full_tables([USER], optimizer=TableOptimizer(learning_rate=0.1), backend="torch")
    now = full_tables([USER], optimizer=TableOptimizer(learning_rate=0.2), seed=9)
    check_identity(before.identity(), now.identity(), owner="c")


def test_many_differences_are_cut_short() -> None:
    before, now = ({str(i): value for i in range(9)} for value in (1, 2))
    with pytest.raises(OtherTablesError, match=r"0 was 1 and is 2; .*; and 4 more"):
        check_identity(before, now, owner="c")


def test_differences_name_their_places() -> None:
    before = {"a": [{"key": "x", "b": 1}, {"key": "y", "b": 2}], "c": [1, 2], "d": {"e": None}}
    now = {"a": [{"key": "x", "b": 1}, {"key": "y", "b": 3}], "c": [1, 2, 3], "d": {"e": 0}}
    assert differences(before, now) == [
        "a.y.b was 2 and is 3",
        "c were [1, 2] and are [1, 2, 3]",
        "d.e was None and is 0",
    ]
    assert differences(before, before) == []
