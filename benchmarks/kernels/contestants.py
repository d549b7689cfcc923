"""Who takes part in a case."""

import dataclasses
import warnings
from collections.abc import Callable

import torch
from case import EPS, LEARNING_RATE, NUM_FEATURES, Case, feature_names, initial_weight
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.ids.hashing import hash_rows_torch, hash_seed
from recemb.tables.backend import Backend
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Hash
from recemb.tables.spec import TableSpec


def truth(case: Case) -> tuple[Tensor, Tensor]:
    """Return the vectors of the first batch before and after one step.

    By recemb's torch backend, whose every formula is tested against float64.
    """
    tables = Recemb(case, "torch")
    before = tables.forward(0).detach()
    tables.step(0)
    return before, tables.forward(0).detach()


def recemb_tables(case: Case, backend: Backend) -> PlannedTables:
    """Return recemb's tables for a case."""
    names = ["shared"] if case.is_shared else [f"t{f}" for f in range(NUM_FEATURES)]
    tables = tuple(
        PhysicalTable(name=n, num_rows=r, width=case.width, dtype=case.dtype)
        for n, r in zip(names, case.num_rows, strict=False)
    )
    outputs = []
    for f, (feature, rows) in enumerate(zip(feature_names(), case.num_rows, strict=True)):
        seed = hash_seed(0, feature)
        outputs.append(
            Output(
                key=feature,
                feature=feature,
                owner=feature,
                num_ids=None if case.is_hashed else rows,
                embedding_dim=case.width,
                pooling="sum",
                lookups=(
                    VirtualLookup(
                        table=names[0] if case.is_shared else names[f],
                        program=(Hash(seed=seed, num_rows=rows),) if case.is_hashed else (),
                    ),
                ),
            )
        )
    specs = [
        TableSpec(name=o.key, num_embeddings=r, embedding_dim=case.width, feature_names=(o.key,))
        for o, r in zip(outputs, case.num_rows, strict=True)
    ]
    made = PlannedTables(
        specs,
        LookupPlan(tables=tables, outputs=tuple(outputs)),
        optimizer=TableOptimizer(kind="rowwise_adagrad", learning_rate=LEARNING_RATE, eps=EPS),
        backend=backend,
        initial={n: Initial(distribution="uniform", spread=0) for n in names},
    )
    total = sum(t.num_rows for t in tables)
    made.engine.stores[0].weight.copy_(initial_weight(total, case.width, case.dtype))
    return made


class Contender:
    """Who takes part.

    Attributes:
        name: in the table.
        trains: whether it has the exact update.
        note: for the table.
    """

    name = ""
    trains = True
    note = ""

    def __init__(self, case: Case) -> None:
        self.case = case

    def forward(self, k: int) -> Tensor:
        """Return the vectors (B, 26 * width) of batch k."""
        raise NotImplementedError

    def step(self, k: int) -> None:
        """Look up batch k and update the tables."""
        self.forward(k).backward(self.case.grad)

    def timed_forward(self, k: int) -> None:
        """Look up batch k, not for training."""
        with torch.no_grad():
            self.forward(k)


class Recemb(Contender):
    """recemb's tables."""

    def __init__(self, case: Case, backend: Backend) -> None:
        super().__init__(case)
        self.name = "recemb" if backend == "auto" else f"recemb {backend}"
        self.tables = recemb_tables(case, backend)

    def forward(self, k: int) -> Tensor:
        return self.tables(self.case.batches[k]).values()


class RecembWithoutHash(Recemb):
    """recemb's tables over ids that were hashed before the clock started: what hashing costs."""

    def __init__(self, case: Case) -> None:
        super().__init__(dataclasses.replace(case, is_hashed=False), "auto")
        self.name = "recemb, ids hashed before"
        self.rows = [
            KeyedJaggedTensor(
                keys=feature_names(), values=hashed_ids(case, b.values()), lengths=b.lengths()
            )
            for b in case.batches
        ]

    def forward(self, k: int) -> Tensor:
        return self.tables(self.rows[k]).values()


class Fbgemm(Contender):
    """FBGEMM's own module, as its users build it; hashed ids are hashed before it, in torch."""

    name = "FBGEMM TBE"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            OptimType,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        if case.dtype != "float32":
            self.trains = False
            self.note = "its CPU update of float16 rounds to nearest"
        rows = case.num_rows[:1] if case.is_shared else case.num_rows
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(r, case.width, EmbeddingLocation.HOST, ComputeDevice.CPU) for r in rows],
            feature_table_map=[0] * NUM_FEATURES if case.is_shared else None,
            optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=EPS,
            weights_precision=SparseType.from_dtype(getattr(torch, case.dtype)),
            output_dtype=SparseType.FP32,
        )
        first, weight = 0, initial_weight(sum(rows), case.width, case.dtype)
        for target in self.tables.split_embedding_weights():
            target.copy_(weight[first : first + target.shape[0]])
            first += target.shape[0]

    def forward(self, k: int) -> Tensor:
        batch = self.case.batches[k]
        ids = hashed_ids(self.case, batch.values()) if self.case.is_hashed else batch.values()
        vectors: Tensor = self.tables(ids, batch.offsets().long())
        return vectors


def hashed_ids(case: Case, values: Tensor) -> Tensor:
    """Return the rows of the ids, hashed feature by feature in eager torch."""
    parts = torch.split(values, values.numel() // NUM_FEATURES)
    return torch.cat(
        [
            hash_rows_torch(ids, hash_seed(0, name), rows)
            for ids, name, rows in zip(parts, feature_names(), case.num_rows, strict=True)
        ]
    )


class OneEmbeddingBag(Contender):
    """torch's embedding_bag over one concatenated table: forward only."""

    name = "F.embedding_bag, one table"
    trains = False

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        rows = case.num_rows[:1] if case.is_shared else case.num_rows
        self.weight = initial_weight(sum(rows), case.width, case.dtype)
        firsts = [0] * NUM_FEATURES if case.is_shared else [sum(rows[:f]) for f in range(len(rows))]
        self.firsts = torch.tensor(firsts).unsqueeze(1)

    def rows(self, k: int) -> Tensor:
        values = self.case.batches[k].values()
        if self.case.is_hashed:
            values = hashed_ids(self.case, values)
        return (values.view(NUM_FEATURES, -1) + self.firsts).view(-1)

    def forward(self, k: int) -> Tensor:
        offsets = torch.arange(NUM_FEATURES * self.case.batch_size + 1) * self.case.length
        bags = F.embedding_bag(
            self.rows(k), self.weight, offsets, mode="sum", include_last_offset=True
        )
        by_feature = bags.view(NUM_FEATURES, self.case.batch_size, -1)
        return by_feature.transpose(0, 1).flatten(1).float()


class Inductor(OneEmbeddingBag):
    """The same gather and sum, compiled by torch.compile: forward only."""

    name = "torch.compile"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.compiled = torch.compile(self.gather, dynamic=False)

    def gather(self, ids: Tensor, weight: Tensor, firsts: Tensor) -> Tensor:
        rows = ids.view(NUM_FEATURES, self.case.batch_size, -1) + firsts.unsqueeze(2)
        return weight[rows].float().sum(dim=2).transpose(0, 1).flatten(1)

    def forward(self, k: int) -> Tensor:
        values = self.case.batches[k].values()
        if self.case.is_hashed:
            values = hashed_ids(self.case, values)
        vectors: Tensor = self.compiled(values, self.weight, self.firsts)
        return vectors


class SparseBags(Contender):
    """nn.EmbeddingBag(sparse=True) for each feature, with torch's sparse Adagrad: per value."""

    name = "nn.EmbeddingBag(sparse)"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        rows = case.num_rows[:1] if case.is_shared else case.num_rows
        weight = initial_weight(sum(rows), case.width, case.dtype)
        self.bags = [
            nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="sum", sparse=True)
            for table in torch.split(weight, rows)
        ]
        self.trains = False
        self.note = "forward only: torch has no row-wise Adagrad"

    def forward(self, k: int) -> Tensor:
        values = self.case.batches[k].values()
        ids = hashed_ids(self.case, values) if self.case.is_hashed else values
        bags = self.bags * NUM_FEATURES if self.case.is_shared else self.bags
        parts = torch.split(ids, ids.numel() // NUM_FEATURES)
        found = [
            bag(part.view(self.case.batch_size, -1)) for bag, part in zip(bags, parts, strict=False)
        ]
        return torch.cat(found, dim=1).float()


def _recemb_torch(case: Case) -> Contender:
    return Recemb(case, "torch")


def _recemb(case: Case) -> Contender:
    return Recemb(case, "auto")


def _without_hash(case: Case) -> Contender | None:
    return RecembWithoutHash(case) if case.is_hashed else None


def _inductor(case: Case) -> Contender | None:
    # It is compiled anew for every case, so it takes part in a few.
    is_plain = case.dtype == "float32" and case.batch_size == 4096 and case.width < 128
    return Inductor(case) if is_plain and case.is_zipf and not case.is_shared else None


def _fbgemm(case: Case) -> Contender:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Fbgemm(case)


CONTENDERS: tuple[Callable[[Case], Contender | None], ...] = (
    _recemb,
    _recemb_torch,
    _without_hash,
    _fbgemm,
    SparseBags,
    OneEmbeddingBag,
    _inductor,
)
