"""Batches with histories, and models over full tables."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.data.batch import Batch
from recemb.data.schema import Categorical, History, Schema
from recemb.models.sequence.history_model import HistoryModel
from recemb.tables.full import full_tables

LONGEST = 9
NUM_ITEMS, NUM_CATEGORIES = 40, 6
SCHEMA = Schema(
    dense=(),
    categorical=(
        Categorical(name="item", num_embeddings=NUM_ITEMS),
        Categorical(name="category", num_embeddings=NUM_CATEGORIES),
        Categorical(name="position", num_embeddings=LONGEST + 1),
    ),
    label="label",
    histories=(
        History(name="item_history", of="item"),
        History(name="category_history", of="category"),
        History(name="position_history", of="position", is_position=True),
    ),
)
OPTIONS: dict[str, Any] = {
    "top_k": 4,
    "hidden_units": [8],
    "auxiliary_units": [8],
}


@pytest.fixture
def schema() -> Schema:
    """Return item, category and position, and a history of each."""
    return SCHEMA


@pytest.fixture
def draw() -> Callable[..., Batch]:
    """Return a maker of batches whose histories have given lengths."""
    return _batch


def _batch(lengths: Sequence[int], *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(lengths, dtype=torch.int64)
    num, total = len(lengths), int(counts.sum())

    def ids(limit: int, size: int) -> Tensor:
        return torch.randint(0, limit, (size,), generator=generator)

    positions = [torch.arange(0), *(torch.arange(n, 0, -1) for n in lengths)]
    values = [
        *(ids(NUM_ITEMS, num), ids(NUM_CATEGORIES, num), torch.zeros(num, dtype=torch.int64)),
        *(ids(NUM_ITEMS, total), ids(NUM_CATEGORIES, total), torch.cat(positions)),
    ]
    ones = torch.ones(num, dtype=torch.int64)
    features = KeyedJaggedTensor(
        keys=list(SCHEMA.feature_names),
        values=torch.cat(values),
        lengths=torch.cat([ones, ones, ones, counts, counts, counts]),
        stride=num,
    )
    labels = torch.randint(0, 2, (num,), generator=generator).float()
    return Batch(dense=torch.zeros(num, 0), features=features, labels=labels)


@pytest.fixture
def make() -> Callable[..., Any]:
    """Return a maker of a model with tables that have dense gradients."""

    def made(kind: type[HistoryModel], *, dim: int = 4, std: float = 0.5, **options: Any) -> Any:
        known = inspect.signature(kind.__init__).parameters
        chosen = {**{k: v for k, v in OPTIONS.items() if k in known}, **options}
        specs = kind.table_specs(SCHEMA, embedding_dim=dim, options=chosen)
        tables = full_tables(specs, seed=1, init_std=std)
        torch.manual_seed(2)
        return kind.for_tables(SCHEMA, tables, chosen), tables

    return made
