"""FullTables against torch.optim, nn.EmbeddingBag and the dense reference."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import FullTables
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec


def make_specs(num_tables=3, width=4, rows=7, pooling="sum"):
    return [
        TableSpec(
            name=f"t{i}",
            num_embeddings=rows + i,
            embedding_dim=width,
            feature_names=(f"f{i}",),
            pooling=pooling,
        )
        for i in range(num_tables)
    ]


def one_hot(specs, batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, s.num_embeddings, (batch_size,), generator=generator) for s in specs]
    return KeyedJaggedTensor(
        keys=[s.feature_names[0] for s in specs],
        values=torch.cat(ids),
        lengths=torch.ones(batch_size * len(specs), dtype=torch.int32),
    )


def test_forward_equals_pooling_the_rows():
    specs = make_specs()
    tables = FullTables(specs, optimizer=TableOptimizer())
    features = one_hot(specs, 5)
    expected = [tables.rows(key, features[key].values()) for key in tables.keys]
    torch.testing.assert_close(tables(features).values(), torch.cat(expected, dim=1))


@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_touched_update_equals_dense_torch_optimizer(kind):
    specs = make_specs()
    ours = FullTables(specs, optimizer=TableOptimizer(kind=kind, learning_rate=0.1, eps=1e-10))
    theirs = FullTables(specs)
    make = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[kind]
    optimizer = make(theirs.parameters(), lr=0.1)
    for step in range(4):
        features = one_hot(specs, 9, seed=step)
        for tables in (ours, theirs):
            tables(features).values().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for spec in specs:
        name = f"embedding_bags.{spec.name}.weight"
        torch.testing.assert_close(ours.state_dict()[name], theirs.state_dict()[name])
