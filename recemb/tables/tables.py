"""The seam: ids in, vectors out, however the tables are stored.

Shapes: `B` examples, `N` ids, `D` embedding_dim.
"""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.tables.engine import RowEngine
from recemb.tables.spec import TableSpec, output_keys
from recemb.tables.storage import Storage
from recemb.tables.store import GroupStore


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several ranks gets of some tables.

    Attributes:
        rows: makes, of planned tables, those of which this rank holds its shards.
        process_group: the ranks.
        device: where everything else lives.
    """

    rows: Callable[["Tables"], "Tables"]
    process_group: dist.ProcessGroup
    device: torch.device


class Tables(nn.Module, abc.ABC):
    """Vectors for the features of several tables, however those are stored.

    `state_dict` names weights `embedding_bags.<table>.<part>` and optimizer state
    `optimizer.<table>.<part>`; it holds all that training needs to go on bit by bit.

    Attributes:
        specs: the tables, in configured order.
        keys: keys of the pooled output, in configured order, whatever the input's order.
        sequence_keys: keys of the unpooled output: those of tables with pooling "none".
        embedding_dims: width of each of `keys`, in the same order.
        sequence_dims: width of each of `sequence_keys`, in the same order.

    Raises:
        ValueError: if two tables share a name, or a table names a feature twice.
    """

    def __init__(self, specs: Sequence[TableSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.outputs = output_keys(specs)
        self.keys = tuple(k for k, (s, _) in self.outputs.items() if s.pooling != "none")
        self.sequence_keys = tuple(k for k in self.outputs if k not in self.keys)
        self.embedding_dims = {k: self.outputs[k][0].embedding_dim for k in self.keys}
        self.sequence_dims = {k: self.outputs[k][0].embedding_dim for k in self.sequence_keys}

    @abc.abstractmethod
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Ids that `features` holds for other features are ignored. An empty bag gives zeros.

        Raises:
            ValueError: if a feature is missing, or an id is out of range and the tables' policy is
                to raise.
        """

    @abc.abstractmethod
    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Raises:
            ValueError: as `forward`.
        """

    @abc.abstractmethod
    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), each in [0, num_embeddings).

        The slow, readable truth: `forward` equals pooling these.

        Raises:
            ValueError: on an unknown key or an id out of range.
        """

    def stored_vectors(self, key: str) -> Tensor | None:
        """Return the table (num_embeddings, D) whose row `i` is the vector of id `i`, to read from.

        For kernels that gather by themselves. None where vectors are not stored as they are.
        """
        return None

    @abc.abstractmethod
    def storage(self) -> Storage:
        """Return the exact bytes, part by part."""

    def identity(self) -> dict[str, Any]:
        """Return, as plain JSON types, what a state_dict of these tables belongs to.

        That is what a state_dict does not say, and what makes its rows meaningless if it changes:
        the tables, their features in order, and how ids become rows, hash seeds included. It does
        not depend on device, backend or sharding.
        """
        parts = [module.identity() for module in self.children() if isinstance(module, Tables)]
        specs = [{**asdict(spec), "feature_names": list(spec.feature_names)} for spec in self.specs]
        return {"tables": specs, **({"parts": parts} if parts else {})}

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the trainer's dense optimizer must update.

        Rows that the tables update themselves are not among them: what is left are small shared
        parts (codebooks, networks), or everything in tables without an optimizer.
        """
        return [p for p in self.parameters() if p.requires_grad]

    def penalty(self) -> Tensor:
        """Return the term, a scalar, that this storage adds to the loss."""
        return torch.zeros(())

    @abc.abstractmethod
    def freeze(self) -> "Tables":
        """Return the form that serving needs: the same vectors, no optimizer state, no gradients.

        The result may share memory with these tables.
        """

    @abc.abstractmethod
    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update on."""

    @abc.abstractmethod
    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True.

        The next backward pass with False applies one exact update of the sum over everything that
        was collected, itself included: gradient accumulation over micro-batches.
        """

    def why_not_sharded(self) -> str | None:
        """Return why several processes cannot share these tables, or None if they can."""
        return (
            f"{type(self).__name__} do more than look rows up: they compute or keep something "
            "about all rows, which no rank has; train them in one process"
        )

    def sharded(self, share: "Share") -> "Tables":
        """Return these tables made anew for one of several ranks; they are on the meta device.

        Rows are as `share` makes them. What is computed with them is the same on every rank, its
        parameters are among `dense_parameters`, and whoever trains sums their gradients.

        Args:
            share: what this rank gets.

        Raises:
            ValueError: if `why_not_sharded` says so.
        """
        raise ValueError(f"tables cannot be sharded: {self.why_not_sharded()}")

    def reset_optimizer(self) -> None:
        """Set the state of the rows' own optimizer to that before the first update."""
        for module in self.modules():
            if isinstance(module, GroupStore):
                module.reset_optimizer()

    @contextlib.contextmanager
    def hold_rows(self) -> Iterator[None]:
        """Within this context rows are constants: no backward pass updates them.

        For losses that are to move something else alone, such as a bilevel step's on validation
        data.
        """
        engines = [module for module in self.modules() if isinstance(module, RowEngine)]
        for engine in engines:
            engine.hold(True)
        try:
            yield
        finally:
            for engine in engines:
                engine.hold(False)
