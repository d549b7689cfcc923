"""What all methods of computed rows have in common: description, streams of random numbers."""

import json

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.computed import largest_size
from recemb.methods.dhe import DHE
from recemb.methods.hashed_nets import HashedNets
from recemb.methods.robe import ROBE
from recemb.methods.tt_rec import TTRec
from recemb.tables.computed import ComputedTables
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec

METHODS = [TTRec(), DHE(num_hashes=64), ROBE(), HashedNets()]
SPECS = [
    TableSpec(name=name, num_embeddings=n, embedding_dim=8, feature_names=(f"f.{name}",))
    for name, n in (("one", 3000), ("one.more", 3000), ("tiny", 3))
]


def build(method, *, ratio=0.3, seed=0):
    device = torch.device("cpu")
    return method.build(
        SPECS, {}, Budget(ratio=ratio), optimizer=TableOptimizer(), seed=seed, device=device
    )


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, s.num_embeddings, (20,), generator=generator) for s in SPECS]
    return KeyedJaggedTensor(
        keys=[f for s in SPECS for f in s.feature_names],
        values=torch.cat(ids),
        lengths=torch.ones(60, dtype=torch.int32),
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_the_serving_form_is_made_anew_from_its_description_and_its_state(method):
    tables = build(method)
    tables(draw()).values().sum().backward()
    frozen = tables.freeze()
    description = json.loads(json.dumps(frozen.description()))
    planned = None
    if frozen.planned is not None:
        plan = LookupPlan.from_json(description["plan"])
        planned = PlannedTables(frozen.planned.specs, plan)
    again = ComputedTables(
        SPECS,
        sources={
            name: type(source)(**description["sources"][name]["settings"])
            for name, source in frozen.sources.items()
        },
        source_of=description["source_of"],
        planned=planned,
    ).eval()
    again.load_state_dict(frozen.state_dict())
    assert torch.equal(again(draw(1)).values(), frozen(draw(1)).values())


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda m: type(m).__name__)
def test_tables_of_one_size_begin_differently(method):
    tables = build(method)
    ids = torch.arange(50)
    assert not torch.allclose(tables.rows("f.one", ids), tables.rows("f.one.more", ids))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_all_tables_stay_as_they_are_without_a_budget_or_with_a_generous_one(method):
    for budget in (None, Budget(ratio=1.0)):
        tables = method.build(SPECS, {}, budget, optimizer=None, seed=0, device=torch.device("cpu"))
        assert tables.source_of == {}
        assert tables.storage().serve_bytes == tables.storage().full_bytes


@pytest.mark.parametrize(("allowed", "size"), [(1, 1), (25, 5), (35, 5), (36, 6), (10_000, 9)])
def test_the_largest_size_within_the_budget_is_found(allowed, size):
    budget = Budget(num_bytes=allowed)
    assert largest_size(lambda n: n * n, budget, SPECS, most=9) == size
