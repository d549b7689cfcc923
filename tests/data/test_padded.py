"""Padded histories become those that data sets give."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recemb.data.batch import Batch, features_of_padded
from recemb.data.schema import Categorical, Schema
from recemb.data.synthetic_sequences import SyntheticSequences

HISTORIES = ("item_history", "category_history", "position_history")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    data = SyntheticSequences(num_users=6, length=25, num_items=60, max_history=12)
    return data.prepare(Path(), tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def batch(prepared) -> Batch:
    found = next(prepared.batches("train", batch_size=70))
    lengths = found.features["item_history"].lengths()
    assert int(lengths.min()) < int(lengths.max()) == 12
    return found


def padded(batch: Batch, side: str, rubbish: int = 10**9) -> tuple[dict[str, Tensor], Tensor]:
    """Return ids and mask of a batch's histories, 15 places wide, with rubbish as padding."""
    ids = {n: batch.features[n].values() for n in ("item", "category", "position")}
    for name in HISTORIES:
        bags = batch.features[name].to_dense()
        ids[name] = torch.full((len(bags), 15), rubbish)
        mask = torch.zeros(len(bags), 15, dtype=torch.bool)
        for e, bag in enumerate(bags):
            places = slice(15 - len(bag), 15) if side == "left" else slice(0, len(bag))
            ids[name][e, places], mask[e, places] = bag, True
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("are_positions_given", [True, False])
def test_padded_histories_give_the_batch_that_the_data_give(
    prepared, batch: Batch, side: str, are_positions_given: bool
) -> None:
    ids, mask = padded(batch, side)
    if not are_positions_given:
        del ids["position"], ids["position_history"]
    found = features_of_padded(prepared.schema, ids, mask)
    assert found.keys() == batch.features.keys()
    assert torch.equal(found.values(), batch.features.values())
    assert torch.equal(found.lengths(), batch.features.lengths())
    assert found.stride() == len(batch)


def test_no_examples_and_no_behaviours_are_batches_too(prepared, batch: Batch) -> None:
    ids, mask = padded(batch, "left")
    none = features_of_padded(prepared.schema, {n: v[:0] for n, v in ids.items()}, mask[:0])
    assert none.stride() == 0
    empty = features_of_padded(prepared.schema, ids, torch.zeros_like(mask))
    assert empty["item_history"].lengths().tolist() == [0] * len(batch)


def test_what_does_not_fit_is_refused(prepared, batch: Batch) -> None:
    ids, mask = padded(batch, "left")
    schema = prepared.schema
    with pytest.raises(ValueError, match=r"mask must be \(B, L\) bool"):
        features_of_padded(schema, ids, mask.long())
    with pytest.raises(ValueError, match=r"ids must be those of .*'item'"):
        features_of_padded(schema, {n: v for n, v in ids.items() if n != "item"}, mask)
    with pytest.raises(ValueError, match=r"feature 'item_history' must be \(\d+, 14\)"):
        features_of_padded(schema, ids, mask[:, 1:])
    tags = Categorical(name="tags", num_embeddings=3, is_multi_hot=True)
    bags = Schema(dense=(), categorical=(tags,), label="label")
    with pytest.raises(ValueError, match=r"\['tags'\] are multi-hot"):
        features_of_padded(bags, ids, mask)
