"""Tables and ids that cannot be meant are refused."""

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.adapt_emb import frequency_ranks
from recemb.tables import TableSpec, full_tables

SPEC = TableSpec(name="user", num_embeddings=5, embedding_dim=4, feature_names=("user",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature_names": "user"}, r"feature_names are several, \('user',\) for one"),
        ({"num_embeddings": 1e3}, "num_embeddings must be a whole number, got 1000.0"),
        ({"embedding_dim": "4"}, "embedding_dim must be a whole number, got '4'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(changed, message) -> None:
    given = {"name": "t", "num_embeddings": 5, "embedding_dim": 4, "feature_names": ("f",)}
    with pytest.raises(ValueError, match=message):
        TableSpec(**{**given, **changed})


def test_sizes_may_be_numpy_s() -> None:
    spec = TableSpec(
        name="t", num_embeddings=np.int64(5), embedding_dim=np.int32(4), feature_names=("f",)
    )
    assert full_tables([spec]).table("t").shape == (5, 4)


def test_what_is_no_jagged_tensor_of_integers_is_refused() -> None:
    tables = full_tables([SPEC])
    with pytest.raises(TypeError, match="read a KeyedJaggedTensor, got dict"):
        tables({"user": torch.tensor([1])})  # type: ignore[arg-type]
    ids = KeyedJaggedTensor(["user"], torch.tensor([3.7]), lengths=torch.tensor([1]))
    with pytest.raises(TypeError, match=r"ids must be integers, got torch\.float32"):
        tables(ids)


def test_counts_that_are_of_no_feature_of_the_table_are_refused() -> None:
    counts = torch.tensor([1, 2, 3, 2, 9])
    assert frequency_ranks(SPEC, {"user": counts, "other": counts[:1]}).tolist() == [4, 2, 1, 3, 0]
    assert frequency_ranks(SPEC, {}).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"counts of \['User'\], and none of its features"):
        frequency_ranks(SPEC, {"User": counts})
    with pytest.raises(ValueError, match="has 5 ids and 4 counts"):
        frequency_ranks(SPEC, {"user": counts[:4]})
