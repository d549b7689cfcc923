"""Runs of sharded tables beside the same in one process, for tests and each of their processes."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.compaction import compact
from recemb.methods.compo_emb import CompoEmb
from recemb.methods.dhe import DHE
from recemb.methods.full import Full
from recemb.methods.matryoshka import Matryoshka
from recemb.methods.mde import MDE
from recemb.methods.mgqe import MGQE
from recemb.methods.robe import ROBE
from recemb.methods.tt_rec import TTRec
from recemb.methods.unified import Unified
from recemb.tables.gathered import gathered_state
from recemb.tables.method import Budget, IdCounts, Method
from recemb.tables.optimizer import Kind, TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.sharded import shard_tables
from recemb.tables.sharding import plan_sharding, read_shardings
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables
from recemb.train.ranks import Ranks
from recemb.train.sharded_run import physical_tables

# Sums of float32 gradients in another order. Where Adagrad and Adam divide a gradient by its own
# size, what is left of a sum that cancels decides a whole step: so targets keep sums from it.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

POOLED = (
    TableSpec(name="a", num_embeddings=50, embedding_dim=8, feature_names=("f0", "f1")),
    TableSpec(name="b", num_embeddings=3, embedding_dim=8, feature_names=("f2",), pooling="mean"),
    TableSpec(name="c", num_embeddings=31, embedding_dim=4, feature_names=("f3",)),
    TableSpec(name="wa", num_embeddings=50, embedding_dim=2, feature_names=("f0", "f1")),
)
SEQUENCES = (
    TableSpec(name="t", num_embeddings=40, embedding_dim=8, feature_names=("f0",)),
    TableSpec(
        name="h", num_embeddings=40, embedding_dim=8, feature_names=("f0", "f1"), pooling="none"
    ),
    TableSpec(name="g", num_embeddings=9, embedding_dim=4, feature_names=("f2",), pooling="none"),
)
# Those of `model=dare`: both roles' tables read the same ids, of targets and histories.
DARE = tuple(
    TableSpec(
        name=f"{part}.{role}",
        num_embeddings=num_rows,
        embedding_dim=width,
        feature_names=(part, f"{part}_history"),
        pooling="none",
    )
    for role, width in (("attention", 4), ("representation", 8))
    for part, num_rows in (("item", 40), ("category", 9), ("position", 4))
)


class Compacted(Full):
    """The tables that OptEmbed retrains: some rows and columns are gone, ids are mapped."""

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> PlannedTables:
        draws = torch.Generator().manual_seed(seed)
        wide = [spec for spec in specs if spec.embedding_dim > 4]
        kept = {s.name: torch.rand(s.num_embeddings, generator=draws) < 0.6 for s in wide}
        widths = {spec.name: spec.embedding_dim - 2 * (1 + i) for i, spec in enumerate(wide)}
        weights = {
            s.name: torch.randn(s.num_embeddings, s.embedding_dim, generator=draws) for s in specs
        }
        made = compact(specs, kept=kept, widths=widths, weights=weights)
        return made.tables(specs, optimizer=optimizer, seed=seed, device=device)


METHODS: Mapping[str, tuple[Method, Budget | None]] = {
    "full": (Full(), None),
    "unified": (Unified(exact_below=2), Budget(ratio=0.5)),
    "compo_emb": (CompoEmb(), Budget(ratio=0.5)),
    "mde": (MDE(), Budget(ratio=0.5)),
    "optembed": (Compacted(), None),
    "dare": (Full(), None),
    "tt_rec": (TTRec(), Budget(ratio=0.5)),
    "robe": (ROBE(), Budget(ratio=0.5)),
    "dhe": (DHE(num_hashes=16), Budget(ratio=0.5)),
    "matryoshka": (Matryoshka(), None),
    "mgqe": (MGQE(num_parts=2, num_centroids=8, tail_centroids=4), None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        method: one of METHODS.
        sharding: a kind, or "mixed".
        optimizer: how rows are updated.
        specs: the tables.
        max_length: longest bag; None for one id in each.
        weighted: whether ids have weights.
        batch_size: over all ranks.
        micro_batches: passes of one update.
        num_steps: updates.
    """

    method: str = "full"
    sharding: str = "row_wise"
    optimizer: Kind = "adagrad"
    specs: Sequence[TableSpec] = POOLED
    max_length: int | None = 3
    weighted: bool = False
    batch_size: int = 7
    micro_batches: int = 1
    num_steps: int = 10

    def __str__(self) -> str:
        changed = [
            str(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name != "specs" and getattr(self, f.name) != f.default
        ]
        kind = ["sequences"] if self.specs is SEQUENCES else []
        return "-".join(["case", *kind, *changed])


MATRIX_METHODS = ("full", "unified", "compo_emb", "mde", "optembed", "dare")
_KINDS = ("data_parallel", "row_wise", "table_wise", "column_wise", "mixed")
_OPTIMIZERS: tuple[Kind, ...] = ("adagrad", "adam", "sgd")


def matrix_case(method: str, **named: Any) -> Case:
    """Return a run of one of MATRIX_METHODS."""
    return Case(method=method, specs=DARE if method == "dare" else POOLED, **named)


def matrix_cases(method: str) -> list[Case]:
    """Return a run of 50 updates for each kind of sharding, by optimizers in turn."""
    first = MATRIX_METHODS.index(method)
    return [
        matrix_case(
            method,
            sharding=sharding,
            optimizer=_OPTIMIZERS[(first + place) % len(_OPTIMIZERS)],
            num_steps=50,
        )
        for place, sharding in enumerate(_KINDS)
    ]


def build(case: Case, device: str) -> Tables:
    """Return the tables of a case."""
    method, budget = METHODS[case.method]
    counts = {f: torch.arange(s.num_embeddings) for s in case.specs for f in s.feature_names}
    optimizer = TableOptimizer(kind=case.optimizer, learning_rate=0.05)
    return method.build(
        case.specs, counts, budget, optimizer=optimizer, seed=1, device=torch.device(device)
    )


def gathered(tables: Tables) -> dict[str, Any] | None:
    """Return the state of unsharded tables on rank 0."""
    group = dist.group.WORLD
    assert group is not None
    return gathered_state(tables.state_dict(), group)


def shard(case: Case) -> Tables:
    """Return this rank's part of the tables of a case."""
    meta = build(case, "meta")
    physical = physical_tables(meta)
    request: str | dict[str, Any] = case.sharding
    if request == "mixed":
        kinds = itertools.cycle(["row_wise", "column_wise", "table_wise", "data_parallel"])
        request = {"tables": dict(zip([table.name for table in physical], kinds, strict=False))}
    plan = plan_sharding(
        physical, read_shardings(request, physical), world_size=dist.get_world_size()
    )
    return shard_tables(meta, plan)


def batch(case: Case, step: int, first: int, last: int) -> KeyedJaggedTensor:
    """Return the examples from `first` to `last` of a step's batch."""
    generator = torch.Generator().manual_seed(step)
    sizes = {f: s.num_embeddings for s in reversed(case.specs) for f in s.feature_names}
    values, weights, lengths = [], [], []
    # Not in the tables' order.
    for key in sorted(sizes, reverse=True):
        shape = (case.batch_size,)
        its = torch.ones(shape, dtype=torch.int64)
        if case.max_length is not None:
            its = torch.randint(0, case.max_length + 1, shape, generator=generator)
        ids = torch.randint(0, sizes[key], (int(its.sum()),), generator=generator)
        factors = torch.rand(ids.shape, generator=generator)
        begin, end = int(its[:first].sum()), int(its[:last].sum())
        values.append(ids[begin:end])
        weights.append(factors[begin:end])
        lengths.append(its[first:last])
    return KeyedJaggedTensor(
        keys=sorted(sizes, reverse=True),
        values=torch.cat(values),
        lengths=torch.cat(lengths),
        weights=torch.cat(weights) if case.weighted else None,
    )


def scores_of(tables: Tables, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
    """Return a score (B,) of each example, and the pooled vectors (B, W) that it is of."""
    pooled = tables(features)
    assert pooled.keys() == list(tables.keys)
    vectors = pooled.values()
    scores = torch.exp(0.1 * vectors) @ torch.linspace(1, 2, vectors.shape[1])
    for unpooled in tables.sequences(features).values():
        examples = torch.repeat_interleave(unpooled.lengths())
        scores = scores.index_add(0, examples, torch.exp(0.1 * unpooled.values()).sum(dim=1))
    return scores, vectors


def train(
    tables: Tables, case: Case, *, rank: int = 0, world_size: int = 1, first_step: int = 0
) -> Tensor:
    """Return the last scores and vectors (B, 1 + W) of this rank's share of the batches."""
    found = torch.empty(0)
    dense = torch.optim.SGD(tables.dense_parameters() or [nn.Parameter(torch.zeros(1))], lr=0.01)
    for step in range(first_step, case.num_steps):
        for part in range(case.micro_batches):
            tables.defer_updates(part < case.micro_batches - 1)
            first = case.batch_size * rank // world_size
            last = case.batch_size * (rank + 1) // world_size
            features = batch(case, step * case.micro_batches + part, first, last)
            scores, vectors = scores_of(tables, features)
            found = torch.cat([scores[:, None], vectors], dim=1)
            loss = scores.sum()
            if part == case.micro_batches - 1:
                loss = loss + tables.penalty() / world_size
            loss.backward()
        if world_size > 1:
            Ranks.current().sum_gradients(tables.dense_parameters())
        dense.step()
        dense.zero_grad()
    return found.detach()


def _alone(case: Case) -> tuple[Tensor, dict[str, Any]]:
    """Return the last scores and vectors, and the state, of one process."""
    tables = build(case, "cpu")
    return train(tables, case), dict(tables.state_dict())


def _from_first(make: Callable[[], tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, dict[str, Any]]:
    """Return, on every rank, what the first one makes."""
    found = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def differences(case: Case) -> str | None:
    """Return how a sharded run differs from that of one process; None if it does not."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    many = shard(case)
    begun = gathered(many)
    (expected, state) = _from_first(lambda: _alone(case))
    found = train(many, case, rank=rank, world_size=world_size)
    share = slice(case.batch_size * rank // world_size, case.batch_size * (rank + 1) // world_size)
    ended = gathered(many)
    try:
        torch.testing.assert_close(found, expected[share], **ROUNDING)
        if begun is not None and ended is not None:
            fresh = build(case, "cpu").state_dict()
            torch.testing.assert_close(begun, fresh, rtol=0, atol=0)
            torch.testing.assert_close(ended, state, **ROUNDING)
    except AssertionError as error:
        return str(error)
    return None


def all_differences(cases: Sequence[Case]) -> list[str | None]:
    """Return the differences of each case, on this rank."""
    return [differences(case) for case in cases]
