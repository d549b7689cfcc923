"""Inputs that the tests of the tables share."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.spec import TableSpec


@pytest.fixture
def specs():
    """Three tables of one width, a feature each."""
    return [
        TableSpec(name=f"t{i}", num_embeddings=7 + i, embedding_dim=4, feature_names=(f"f{i}",))
        for i in range(3)
    ]


@pytest.fixture
def mixed_specs():
    """Two widths over the same features, a mean table, and a table that two features share."""
    return [
        TableSpec(name="a", num_embeddings=6, embedding_dim=4, feature_names=("f0", "f1")),
        TableSpec(
            name="b", num_embeddings=9, embedding_dim=8, feature_names=("f2",), pooling="mean"
        ),
        TableSpec(name="c", num_embeddings=5, embedding_dim=4, feature_names=("f3",)),
        TableSpec(name="wa", num_embeddings=6, embedding_dim=1, feature_names=("f0", "f1")),
        TableSpec(
            name="wb", num_embeddings=9, embedding_dim=1, feature_names=("f2",), pooling="mean"
        ),
    ]


@pytest.fixture
def make_features():
    """Return a function that draws features for tables."""

    def make(specs, batch_size, *, seed=0, max_length=None, weighted=False, dtype=torch.int64):
        """Draw one id per bag, or, with `max_length`, 0 to that many, often the same ones."""
        generator = torch.Generator().manual_seed(seed)
        rows = {f: s.num_embeddings for s in reversed(specs) for f in s.feature_names}
        keys = sorted(rows)
        if max_length is None:
            lengths = torch.ones(len(keys), batch_size, dtype=torch.int32)
        else:
            lengths = torch.randint(
                0, max_length + 1, (len(keys), batch_size), generator=generator, dtype=torch.int32
            )
        ids = [
            torch.randint(0, rows[key], (int(num),), generator=generator, dtype=dtype)
            for key, num in zip(keys, lengths.sum(1), strict=True)
        ]
        values = torch.cat(ids)
        weights = torch.randn(values.numel(), generator=generator) if weighted else None
        return KeyedJaggedTensor(
            keys=keys, values=values, lengths=lengths.view(-1), weights=weights
        )

    return make
