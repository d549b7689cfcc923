from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables import TableOptimizer, TableSpec, from_pretrained, full_tables, pretrained

USER = TableSpec(name="user", num_embeddings=5, embedding_dim=3, feature_names=("user",))
ITEM = TableSpec(name="item", num_embeddings=7, embedding_dim=2, feature_names=("item", "last"))
ROWS = np.arange(15.0).reshape(5, 3)


def test_rows_are_those_of_the_array() -> None:
    tables = from_pretrained([USER], {"user": ROWS})
    assert tables.rows("user", torch.arange(5)).tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    "source",
    [
        ROWS.astype(np.float16),
        ROWS.astype(">f8"),
        np.asfortranarray(ROWS),
        torch.from_numpy(ROWS),
        torch.from_numpy(ROWS).bfloat16(),
        torch.nn.Parameter(torch.from_numpy(ROWS).float()),
    ],
)
def test_any_floating_point_type_and_layout_is_taken(source: Any) -> None:
    tables = from_pretrained([USER], {"user": source})
    assert tables.table("user").tolist() == ROWS.tolist()


def test_a_map_of_a_file_is_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_BLOCK_VALUES", 7)
    np.save(tmp_path / "rows.npy", ROWS)
    tables = from_pretrained([USER], {"user": np.load(tmp_path / "rows.npy", mmap_mode="r")})
    assert tables.table("user").tolist() == ROWS.tolist()


def test_the_array_is_copied() -> None:
    source = torch.ones(5, 3)
    tables = from_pretrained([USER], {"user": source})
    source.zero_()
    assert tables.table("user").unique().tolist() == [1.0]


def test_none_draws_a_table_as_without_pretrained_rows() -> None:
    tables = from_pretrained([USER, ITEM], {"user": ROWS, "item": None}, seed=3)
    drawn = full_tables([USER, ITEM], seed=3)
    assert torch.equal(tables.table("item"), drawn.table("item"))


def test_pretrained_rows_are_trained() -> None:
    tables = from_pretrained(
        [USER], {"user": ROWS}, optimizer=TableOptimizer(kind="sgd", learning_rate=0.5)
    )
    ids, lengths = torch.tensor([2]), torch.tensor([1])
    tables(KeyedJaggedTensor.from_lengths_sync(["user"], ids, lengths)).values().sum().backward()
    expected = ROWS.copy()
    expected[2] -= 0.5
    assert tables.table("user").tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"user": ROWS[:4], "item": None},
            r"'user' has num_embeddings 5 and embedding_dim 3, but its array has shape \(4, 3\)",
        ),
        ({"user": ROWS[0], "item": None}, r"has shape \(3,\); it must be \(5, 3\)"),
        ({"user": ROWS}, r"tables \['item'\] have no entry in weights"),
        ({"user": ROWS, "item": None, "shop": ROWS}, r"weights has \['shop'\], but the tables"),
        ({"user": ROWS.astype(int), "item": None}, "'user' has the type int64"),
        ({"user": torch.ones(5, 3).long(), "item": None}, r"'user' has the type torch\.int64"),
        ({"user": np.full((5, 3), np.nan), "item": None}, "row 0 of table 'user' has a value"),
        ({"user": ROWS * 1e300, "item": None}, "row 0 of table 'user' .* not finite"),
    ],
)
def test_what_does_not_fit_is_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_pretrained([USER, ITEM], weights)
