"""Rows of sharded tables, fetched from the ranks that hold them; their gradients, sent back.

TorchRec distributes rows and vectors (its sequence sharding: an all-to-all of rows, one of vectors,
and the reverse of that for gradients). What happens to the rows where they lie, lookup and update,
is recemb's own, so that the optimizers and the arithmetic are those of one process.

Shapes: `U` distinct rows that this rank asks for, `N` rows that it is asked for, `D` values of a
row, `T` tables.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torchrec.distributed.comm_ops import get_gradient_division
from torchrec.distributed.embedding import EmbeddingCollectionContext
from torchrec.distributed.embedding_sharding import KJTListSplitsAwaitable
from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingDist
from torchrec.distributed.sharding.rw_sharding import RwSparseFeaturesDist
from torchrec.distributed.sharding.sequence_sharding import SequenceShardingContext
from torchrec.distributed.sharding.tw_sequence_sharding import TwSequenceEmbeddingDist
from torchrec.distributed.sharding.tw_sharding import TwSparseFeaturesDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.lookup import Lookups, fused_lookup
from recemb.tables.replica import ReplicaUpdater
from recemb.tables.sharding import Shard
from recemb.tables.updater import Part, Updater


class LocalRows:
    """The shards of some tables that this rank holds: looked up here, and updated here.

    Attributes:
        is_training: whether a backward pass may update them.

    Args:
        shards: those of this rank, all of one width, each with at least one row.
        updater: of the memory in which they lie one after the other; None if there are no shards.
        width: D.
        device: where they lie.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        updater: Updater | ReplicaUpdater | None,
        *,
        width: int,
        device: torch.device,
    ) -> None:
        self.is_training = True
        self._updater = updater
        self._width = width
        self._device = device
        self._firsts: dict[str, int] = {}
        first = 0
        for shard in shards:
            self._firsts[shard.name] = first
            first += shard.num_rows

    def firsts(self, shards: Sequence[Shard]) -> Tensor:
        """Return where each shard begins, int64; 0 for one without rows."""
        return torch.tensor([self._firsts.get(s.name, 0) for s in shards], device=self._device)

    def vectors(self, rows: Tensor) -> Tensor:
        """Return the vectors (N, D) of rows (N,); a backward pass updates the rows."""
        needs_grad = torch.is_grad_enabled()
        if self._updater is None:
            return torch.zeros((0, self._width), device=self._device, requires_grad=needs_grad)
        lookups = Lookups(
            rows=rows,
            offsets=None,
            lengths=None,
            scales=None,
            num_slots=1,
            num_outputs=rows.numel(),
            sizes=(rows.numel(),),
        )
        if not needs_grad:
            return self.read([lookups])[0]
        return fused_lookup(self, [lookups], [None])[0]

    def read(self, lookups: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the vectors (N, D) that `lookups` address."""
        assert self._updater is not None
        store = self._updater.store
        vectors: Tensor = lookups[0].gather(store.weight)
        return (vectors if store.group.step is None else vectors * store.group.step,)

    def scale_gradients(
        self, lookups: Sequence[Any], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return nothing: rows have no scales here."""
        return [None]

    def update(self, lookups: Sequence[Any], grads: Sequence[Tensor | None]) -> None:
        """Update the rows that `lookups` addressed."""
        if not self.is_training:
            raise RuntimeError(
                "tables are in eval mode, but a backward pass reached them; call train() before "
                "training, or look up under torch.no_grad() to evaluate"
            )
        assert self._updater is not None
        if grads[0] is not None:
            grad = grads[0].float().contiguous()
            self._updater.add([Part(lookups=lookups[0], grad=grad)])


class Exchange(abc.ABC):
    """Fetches the rows of some tables, all sharded in one way, from the ranks that hold them.

    Attributes:
        shards: what `fetch` returns one block for each of.
        local: what this rank holds.
    """

    def __init__(self, shards: Sequence[Shard], local: LocalRows) -> None:
        self.shards = tuple(shards)
        self.local = local

    @abc.abstractmethod
    def fetch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the vectors (U_s, D) of the rows (U_s,) of each shard's table; collective.

        Args:
            rows: for each of `shards`, rows of its table.
        """


class LocalExchange(Exchange):
    """Tables of which every rank holds a copy."""

    def fetch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the vectors of the rows; see `Exchange`."""
        firsts = self.local.firsts(self.shards).tolist()
        found = self.local.vectors(torch.cat([r + f for r, f in zip(rows, firsts, strict=True)]))
        return list(torch.split(found, [r.numel() for r in rows]))


class TorchrecExchange(Exchange):
    """Tables whose rows and vectors TorchRec distributes.

    Args:
        shards: see `Exchange`.
        local: see `Exchange`.
        held: the shards whose rows this rank is asked for, in the order of its features.
        rows_out: TorchRec's distribution of rows.
        vectors_back: TorchRec's distribution of vectors.
        process_group: the ranks.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        local: LocalRows,
        *,
        held: Sequence[Shard],
        rows_out: Any,
        vectors_back: Any,
        process_group: dist.ProcessGroup,
    ) -> None:
        super().__init__(shards, local)
        self._keys = [shard.name for shard in shards]
        self._firsts = local.firsts(held)
        self._rows_out = rows_out
        self._vectors_back = vectors_back
        self._world_size = process_group.size()

    def fetch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the vectors of the rows; see `Exchange`."""
        sizes = [r.numel() for r in rows]
        # To TorchRec this rank's whole batch is one example: all that counts is which rows.
        asked = KeyedJaggedTensor(
            keys=self._keys,
            values=torch.cat(list(rows)),
            lengths=torch.tensor(sizes, device=rows[0].device),
        )
        context = SequenceShardingContext(features_before_input_dist=asked)
        contexts = EmbeddingCollectionContext(sharding_contexts=[context])
        with torch.no_grad():
            waiting = KJTListSplitsAwaitable([self._rows_out(asked)], contexts)
            held = waiting.wait().wait()[0]
        context.unbucketize_permute_tensor = getattr(
            self._rows_out, "unbucketize_permute_tensor", None
        )
        counts = held.lengths().view(len(self._firsts), self._world_size)
        context.lengths_after_input_dist = counts
        firsts = self._firsts.repeat_interleave(counts.sum(1), output_size=held.values().numel())
        vectors = self.local.vectors(held.values() + firsts)
        found: Tensor = self._vectors_back(vectors, context).wait()
        found = found.view(sum(sizes), vectors.shape[1])
        if found.requires_grad:
            # torch gives this method no types.
            register: Callable[[Callable[[Tensor], Tensor]], object] = found.register_hook
            register(self._undivided)
        return list(torch.split(found, sizes))

    def _undivided(self, grad: Tensor) -> Tensor:
        """Return the gradient times what TorchRec divides it by on its way back.

        Losses are sums over all ranks here, so gradients are, too.
        """
        return grad * self._world_size if get_gradient_division() else grad


def row_wise_exchange(
    shards: Sequence[Shard],
    local: LocalRows,
    *,
    num_rows: Sequence[int],
    process_group: dist.ProcessGroup,
    device: torch.device,
) -> TorchrecExchange:
    """Return the exchange of tables that are cut into blocks of rows.

    Args:
        shards: those of this rank, one for each table.
        local: what this rank holds of them.
        num_rows: of each table.
        process_group: the ranks.
        device: where rows and vectors are.
    """
    return TorchrecExchange(
        shards,
        local,
        held=shards,
        rows_out=RwSparseFeaturesDist(
            process_group, len(shards), list(num_rows), device=device, is_sequence=True
        ),
        vectors_back=RwSequenceEmbeddingDist(process_group, len(shards), device),
        process_group=process_group,
    )


def placed_exchange(
    shards: Sequence[Shard],
    local: LocalRows,
    *,
    process_group: dist.ProcessGroup,
    device: torch.device,
) -> TorchrecExchange:
    """Return the exchange of shards that have all rows of their tables, all or some columns.

    Args:
        shards: those of all ranks.
        local: what this rank holds of them.
        process_group: the ranks.
        device: where rows and vectors are.
    """
    by_rank = sorted(shards, key=lambda shard: shard.rank)
    counts = [sum(s.rank == r for s in shards) for r in range(process_group.size())]
    return TorchrecExchange(
        by_rank,
        local,
        held=[s for s in by_rank if s.rank == process_group.rank()],
        rows_out=TwSparseFeaturesDist(process_group, counts),
        vectors_back=TwSequenceEmbeddingDist(process_group, counts, device),
        process_group=process_group,
    )
