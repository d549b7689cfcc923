"""Rows that are computed from a few shared parameters instead of being looked up.

Shapes: `B` examples, `F` features, `N` ids, `U` distinct ids, `D` embedding_dim.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from recemb.tables.bags import Bags
from recemb.tables.gathered import gathered
from recemb.tables.lookup_plan import Output

HASH_SEED = "hash_seed"
"""Name of the buffer that holds a source's hash seed, (1,) int64, where it hashes."""


class RowSource(nn.Module, abc.ABC):
    """Computes the rows of one or more tables.

    A subclass's constructor takes plain JSON types, the same that `settings` returns, and `device`.
    It registers its parameters, and the buffers that must be saved, under `name`s without dots;
    what it derives from them are buffers that are not persistent. It has no child modules. Its
    tensors are saved and loaded by the tables that own it.

    Attributes:
        form: names the kind of source where it is written down.
        packable: which of its tensors may have fewer bits in serving, decoded whole for every
            batch: a regular expression of their names; None for none.
        reads_batch: whether in training mode a row depends on all ids of the batch.
        process_group: the ranks that share a batch; None for one process.
    """

    form: ClassVar[str]
    packable: ClassVar[str | None] = None
    reads_batch: ClassVar[bool] = False
    process_group: dist.ProcessGroup | None = None

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`, plain JSON types."""

    @abc.abstractmethod
    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,) int64 of a table.

        In training mode they may depend on all of `ids` (`reads_batch`); `truth` does not.
        """

    @abc.abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters, with a generator on the CPU: the same on every device."""

    def truth(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,) as serving computes them."""
        rows: Tensor = self(table, ids)
        return rows

    def pooled(self, outputs: Sequence[Output], bags: Bags) -> list[Tensor]:
        """Return the pooled vectors (B, D) of each output.

        Each distinct id of a table is computed once, whichever features have it.

        Args:
            outputs: F of them, all of this source's tables.
            bags: their ids, all in range.
        """
        rows = self._distinct(outputs, bags)
        return [
            pool(vectors, places, bags, feature, output)
            for feature, (output, (vectors, places)) in enumerate(zip(outputs, rows, strict=True))
        ]

    def unpooled(self, outputs: Sequence[Output], bags: Bags) -> list[Tensor]:
        """Return the vectors (N, D) of all ids of each output; the arguments are `pooled`'s."""
        return [F.embedding(places, vectors) for vectors, places in self._distinct(outputs, bags)]

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and the tensors that are saved."""
        yield from self.named_parameters(recurse=False)
        for name, tensor in self.named_buffers(recurse=False):
            if name not in self._non_persistent_buffers_set:
                yield name, tensor

    def refresh(self) -> None:
        """Derive again, after a load, what follows from saved buffers."""

    def train_bytes(self) -> dict[str, int]:
        """Return the bytes of each part that training holds."""
        found: dict[str, int] = {}
        for name, tensor in self.parts():
            part = "hash_constants" if name == HASH_SEED else "weights"
            found[part] = found.get(part, 0) + tensor.nbytes
        return found

    def serve_bytes(self) -> dict[str, int]:
        """Return the bytes of each part that `frozen` holds."""
        return self.train_bytes()

    def frozen(self) -> Self:
        """Return the serving form; by default the same tensors, shared, without gradients."""
        return self._shared()

    def _shared(self) -> Self:
        """Return a source of the same tensors, shared, without gradients."""
        copy = type(self)(**self.settings(), device=torch.device("meta"))
        for name, parameter in self.named_parameters(recurse=False):
            copy.register_parameter(name, nn.Parameter(parameter.detach(), requires_grad=False))
        for name, buffer in self.named_buffers(recurse=False):
            is_saved = name not in self._non_persistent_buffers_set
            copy.register_buffer(name, buffer, persistent=is_saved)
        return copy.eval()

    def _distinct(self, outputs: Sequence[Output], bags: Bags) -> list[tuple[Tensor, Tensor]]:
        """Return, for each output, rows of distinct ids (U, D), and each id's place in them."""
        ids = torch.split(bags.values, bags.sizes)
        members: dict[str, list[int]] = {}
        for feature, output in enumerate(outputs):
            members.setdefault(output.owner, []).append(feature)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for table, features in members.items():
            joined = torch.cat([ids[f] for f in features]).long()
            distinct, places = torch.unique(joined, return_inverse=True)
            vectors = self._rows_of(table, distinct)
            sizes = [bags.sizes[f] for f in features]
            for f, its in zip(features, torch.split(places, sizes), strict=True):
                found[f] = (vectors, its)
        return [found[feature] for feature in range(len(outputs))]

    def _rows_of(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (U, D) of this rank's distinct ids (U,), those of one process."""
        if self.process_group is None or not (self.training and self.reads_batch):
            rows: Tensor = self(table, ids)
            return rows
        # The sum over ranks of the gradients of parameters is then that of one process, too.
        every = torch.unique(gathered(ids, self.process_group))
        return F.embedding(torch.searchsorted(every, ids), self(table, every))

    def _save_to_state_dict(self, *args: object) -> None:
        """Save nothing: the owner names the tensors."""

    def _load_from_state_dict(self, *args: object) -> None:
        """Load nothing: the owner names the tensors."""


def pool(vectors: Tensor, places: Tensor, bags: Bags, feature: int, output: Output) -> Tensor:
    """Return the pooled vectors (B, D) of one feature's bags.

    Args:
        vectors: (U, D).
        places: (N,) int64, which of `vectors` belongs to each id of the feature.
        bags: of all features.
        feature: which of them.
        output: says how to pool.
    """
    if bags.offsets is None:
        return F.embedding(places, vectors)
    lengths = bags.bag_lengths().view(-1, bags.batch_size)[feature]
    if places.numel() == 0:
        return vectors.new_zeros(bags.batch_size, vectors.shape[1])
    weights = None
    if bags.weights is not None:
        weights = torch.split(bags.weights, bags.sizes)[feature].to(vectors.dtype)
    if output.pooling == "mean":
        inverse = (1 / lengths.clamp(min=1).to(vectors.dtype)).repeat_interleave(
            lengths, output_size=places.numel()
        )
        weights = inverse if weights is None else weights * inverse
    offsets = torch.zeros(bags.batch_size + 1, dtype=torch.int64, device=places.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return F.embedding_bag(
        places,
        vectors,
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def merge_bytes(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the bytes of each part, summed over all mappings."""
    total: dict[str, int] = {}
    for mapping in parts:
        for part, num_bytes in mapping.items():
            total[part] = total.get(part, 0) + num_bytes
    return total
