"""Uncompressed float32 tables.

Shapes: `B` examples, `N` ids, `D` embedding_dim.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.tables.bags import is_one_hot
from recemb.tables.bounds import Bounds, BoundsCheck
from recemb.tables.fbgemm import FbgemmUpdate, is_faster, why_not
from recemb.tables.layout import Slot, Unit, lay_out
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.pooled import PooledLookup, Runs, SequenceLookup
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.store import GroupStore
from recemb.tables.tables import Tables
from recemb.tables.unit import UnitLookup

Backend = Literal["auto", "torch", "fbgemm"]


class FullTables(Tables):
    """Uncompressed float32 tables; all tables of one width lie in one buffer.

    A lookup is updated in its own backward pass: looking the same tables up twice in one step
    updates them twice, in turn.

    Args:
        specs: the tables.
        optimizer: how rows are updated, inside the backward pass: exactly, touched rows only. None
            makes the weights ordinary parameters with dense gradients, for any torch.optim.
        backend: what updates the rows. "torch" is exact for every optimizer, on any device.
            "fbgemm" calls FBGEMM's CPU kernels: SGD, Adagrad and row-wise Adagrad without weight
            decay, pooled tables, widths that are multiples of 4. "auto" takes FBGEMM, table width
            by table width, where it can serve and no two features share a table: there a training
            step took 0.6 of torch's time (benchmarks/training/tables.py, one thread); else torch.
            Both read and write the same memory, so a state saved with one loads with the other.
        bounds: what happens to an id outside [0, num_embeddings), see `BoundsCheck`.
        seed: of the initial weights.
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings), as the DLRM reference implementation (Naumov et al., 2019)
            and TorchRec do.
        device: where the tables live; "meta" allocates nothing.

    Raises:
        ValueError: on an unknown word, or if `init_std` is negative.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        optimizer: TableOptimizer | None = None,
        backend: Backend = "auto",
        bounds: Bounds = "error",
        seed: int = 0,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(specs)
        if backend not in get_args(Backend):
            raise ValueError(
                f"FullTables: backend must be one of {', '.join(get_args(Backend))}, "
                f"got '{backend}'"
            )
        if init_std is not None and init_std < 0:
            raise ValueError(f"FullTables: init_std must not be negative, got {init_std}")
        self.optimizer = optimizer
        self.backend: Backend = backend
        self._bounds = BoundsCheck(bounds)
        self._device = torch.device("cpu" if device is None else device)
        layout = lay_out(specs)
        self._stores = [
            GroupStore(group, optimizer=optimizer, device=self._device) for group in layout.groups
        ]
        columns = layout.columns()
        pooled = [self._unit(unit, columns) for unit in layout.pooled]
        sequences = [self._unit(unit, {}) for unit in layout.sequences]
        self._units = [*pooled, *sequences]
        self._pooled = PooledLookup(pooled, [[columns[g] for g in u.groups] for u in layout.pooled])
        self._sequences = [SequenceLookup(unit) for unit in sequences]
        # Registered so that .to() and .train() reach them; the lists above keep their types.
        self.stores = nn.ModuleList(self._stores)
        self.units = nn.ModuleList(self._units)
        self._owner = {spec.name: s for s in self._stores for spec in s.group.tables}
        if self._device.type != "meta":
            self._initialise(seed, init_std)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Raises:
            ValueError: if a feature is missing, or an id is out of range and `bounds` is "error".
        """
        return KeyedTensor(
            keys=list(self.keys),
            length_per_key=list(self.embedding_dims.values()),
            values=self._pooled(features),
        )

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Weights of ids are handed on, not multiplied in.

        Raises:
            ValueError: as `forward`.
        """
        one_hot = is_one_hot(features)
        found: dict[str, JaggedTensor] = {}
        for lookup in self._sequences:
            bags, blocks = lookup(features, one_hot=one_hot)
            lengths = torch.split(bags.bag_lengths(), bags.batch_size)
            weights = None if bags.weights is None else torch.split(bags.weights, bags.sizes)
            for slots, block in zip(lookup.unit.unit.slots, blocks, strict=True):
                for f, (slot, part) in enumerate(
                    zip(slots, torch.split(block, bags.sizes), strict=True)
                ):
                    found[slot.key] = JaggedTensor(
                        values=part,
                        lengths=lengths[f],
                        weights=None if weights is None else weights[f],
                    )
        return {key: found[key] for key in self.sequence_keys}

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), each in [0, num_embeddings).

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        if key not in self.outputs:
            raise ValueError(f"tables: there is no key '{key}'; the keys are {list(self.outputs)}")
        spec, _ = self.outputs[key]
        outside = ids[(ids < 0) | (ids >= spec.num_embeddings)]
        if outside.numel():
            raise ValueError(
                f"table '{spec.name}': id {int(outside[0])} is not in [0, {spec.num_embeddings})"
            )
        return self._owner[spec.name].table(spec.name)[ids.long()]

    def storage(self) -> Storage:
        """Return the exact bytes: `weights` to serve, and `optimizer_state` too to train."""
        weights = sum(store.weight.nbytes for store in self._stores)
        state = sum(t.nbytes for store in self._stores for t in store.state.values())
        counts = sum(8 * len(store.step_names()) for store in self._stores)
        return Storage(
            full_bytes=sum(spec.full_bytes for spec in self.specs),
            serve={"weights": weights},
            train={"weights": weights, "optimizer_state": state + counts},
        )

    def freeze(self) -> "FullTables":
        """Return the same weights, shared, without optimizer state or gradients, in eval mode."""
        frozen = FullTables(self.specs, bounds=self._bounds.policy, device="meta")
        for mine, its in zip(self._stores, frozen._stores, strict=True):
            its.weight = nn.Parameter(mine.weight.detach(), requires_grad=False)
        frozen.units.to_empty(device=self._stores[0].weight.device)
        for source, target in zip(self.units.buffers(), frozen.units.buffers(), strict=True):
            target.copy_(source)
        return frozen.eval()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update on.

        Raises:
            ValueError: if it is negative, or the tables have no optimizer of their own.
        """
        if self.optimizer is None:
            raise ValueError(
                "FullTables: there is no table optimizer whose learning rate could be set; pass "
                "optimizer=TableOptimizer(...) or set it in your own optimizer"
            )
        if learning_rate < 0:
            raise ValueError(f"FullTables: learning_rate must not be negative, got {learning_rate}")
        for unit in self._units:
            unit.learning_rate = learning_rate

    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True; see `Tables`.

        Without an optimizer this does nothing: autograd accumulates by itself.
        """
        for unit in self._units:
            unit.is_deferring = flag

    def out_of_range_counts(self) -> dict[str, int]:
        """Return how many ids of each key were out of range, and replaced, so far."""
        return {key: self._bounds.counts[key] for key in self.outputs}

    def _unit(self, unit: Unit, columns: Mapping[int, Runs]) -> UnitLookup:
        stores = [self._stores[g] for g in unit.groups]
        kernels = [
            self._kernel(store, slots, columns.get(g, ()))
            for g, store, slots in zip(unit.groups, stores, unit.slots, strict=True)
        ]
        return UnitLookup(unit, stores, kernels=kernels, bounds=self._bounds, device=self._device)

    def _kernel(
        self, store: GroupStore, slots: tuple[Slot, ...], runs: Runs
    ) -> FbgemmUpdate | None:
        if self.backend == "torch":
            return None
        reason = why_not(store.group, self.optimizer, self._device)
        if reason is not None and self.backend == "fbgemm":
            raise ValueError(
                f"FullTables: backend='fbgemm' cannot serve tables of width {store.group.width}: "
                f"{reason}; backend='auto' uses FBGEMM where it can and torch elsewhere"
            )
        if reason is not None or (self.backend == "auto" and not is_faster(slots)):
            return None
        return FbgemmUpdate(store, slots, runs[0][0] if len(runs) == 1 else 0)

    def _initialise(self, seed: int, init_std: float | None) -> None:
        """Draw the tables' weights in configured order, on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for spec in self.specs:
            target = self._owner[spec.name].table(spec.name).detach()
            values = target if target.device.type == "cpu" else torch.empty(target.shape)
            if init_std is None:
                bound = 1 / math.sqrt(spec.num_embeddings)
                values.uniform_(-bound, bound, generator=generator)
            else:
                values.normal_(0, init_std, generator=generator)
            if values is not target:
                target.copy_(values)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if any(unit.has_collected for unit in self._units):
            raise RuntimeError(
                "FullTables: gradients of unfinished micro-batches are waiting, which a state_dict "
                "does not hold; save after the update, that is after a backward pass without "
                "defer_updates"
            )
        for store in self._stores:
            for name, tensor in store.tensors():
                destination[prefix + name] = tensor if keep_vars else tensor.detach()
            for name in store.step_names():
                destination[prefix + name] = torch.tensor(store.step)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = set()
        for store in self._stores:
            expected |= store.load(state_dict, prefix, missing_keys, error_msgs)
        if strict:
            unexpected_keys.extend(
                key for key in state_dict if key.startswith(prefix) and key not in expected
            )
