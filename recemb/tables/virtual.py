"""A plan as TorchRec knows tables: its lookups become features of ordinary embedding bags.

Every virtual lookup of a pooled output is a feature of its own, whose ids are rows of a physical
table. TorchRec then sees nothing but tables, so that its sharding, its fused optimizers and its
checkpoints serve every method whose vectors are linear in the rows; the address programs before the
lookup and the regrouping after it are all that is recemb's.

Shapes: `B` examples, `N` ids, `V` virtual features, `W` the sum of all outputs' widths.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recemb.tables.address import Addresses
from recemb.tables.bags import Bags, is_one_hot, select_bags
from recemb.tables.bounds import Bounds, BoundsCheck, id_limits
from recemb.tables.compose import combine, project
from recemb.tables.layout import Slot, Unit
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.named_tensors import NamedTensors
from recemb.tables.program import ABSENT, may_be_absent

_DATA_TYPES = {
    "float32": DataType.FP32,
    "float16": DataType.FP16,
    "bfloat16": DataType.BF16,
}


class VirtualFeatures(nn.Module):
    """Turns features into virtual ones, and their pooled vectors into those of the outputs.

        virtual = VirtualFeatures(plan)
        bags = EmbeddingBagCollection(tables=virtual.configs(), is_weighted=virtual.is_weighted)
        vectors = virtual.regroup(bags(virtual(features)))

    `bags` may be sharded in any way. The virtual feature of lookup j of output `key` is `key#j`.

    Attributes:
        plan: the plan.
        keys: of the virtual features, table by table in the plan's order.
        is_weighted: whether the virtual features have weights: if the features have some, or if
            outputs that share a table are pooled in different ways, for then means are made by
            weights.

    Args:
        plan: pooled outputs only, linear in their rows.
        is_weighted: whether the ids of `forward` have weights.
        bounds: what happens to an id that its output does not have.
        buffers: what the address programs read.
        projections: the matrices that the outputs name.
        device: where ids come from.

    Raises:
        ValueError: if an output is not linear in its rows, or is not pooled.

    Source: one `EmbeddingBagConfig` over many features, as TorchRec documents it; "Unified
    Embedding" (NeurIPS 2023), section 3, for features that share a table.
    """

    limits: Tensor

    def __init__(
        self,
        plan: LookupPlan,
        *,
        is_weighted: bool = False,
        bounds: Bounds = "error",
        buffers: Mapping[str, Tensor] | None = None,
        projections: Mapping[str, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        _check(plan)
        self.plan = plan
        device = torch.device(device)
        self._bounds = BoundsCheck(bounds)
        self._unit = Unit(slots=(_slots(plan),), groups=(0,), is_pooled=False)
        self.plan_buffers = NamedTensors(buffers or {}, device)
        self._addresses = Addresses(
            self._unit, buffers=self.plan_buffers, dtype=torch.int64, device=device
        )
        self.projections = NamedTensors(projections or {}, device, is_trained=True)
        self._has_absent = any(may_be_absent(s.lookup.program) for s in self._unit.slots[0])
        self.register_buffer("limits", id_limits(self._unit.outputs).to(device), persistent=False)
        self.keys = [f"{s.output.key}#{s.number}" for s in self._unit.slots[0]]
        self._poolings = self._table_poolings()
        self.is_weighted = is_weighted or any(len(p) > 1 for p in self._poolings.values())

    def configs(self) -> list[EmbeddingBagConfig]:
        """Return one table of TorchRec's for each physical table that is read."""
        found = []
        for table in self.plan.tables:
            names = [
                key
                for key, slot in zip(self.keys, self._unit.slots[0], strict=True)
                if slot.lookup.table == table.name
            ]
            if not names:
                continue
            is_mean = self._poolings[table.name] == {"mean"} and not self.is_weighted
            found.append(
                EmbeddingBagConfig(
                    name=table.name,
                    num_embeddings=table.num_rows,
                    embedding_dim=table.width,
                    feature_names=names,
                    pooling=PoolingType.MEAN if is_mean else PoolingType.SUM,
                    data_type=_DATA_TYPES[table.dtype],
                )
            )
        return found

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the virtual features (V, B), whose ids are rows of the physical tables.

        Raises:
            ValueError: if a feature is missing, has weights although `is_weighted` is False, or an
                id is out of range and `bounds` is "error".
        """
        if features.weights_or_none() is not None and not self.is_weighted:
            raise ValueError("VirtualFeatures: ids have weights; construct it with is_weighted")
        one_hot = is_one_hot(features)
        names = [output.feature for output in self._unit.outputs]
        bags = select_bags(features, names, one_hot=one_hot)
        ids = self._bounds.apply(bags, self._unit.outputs, self.limits)
        rows = self._addresses(bags, ids).rows
        sources = list(self._unit.sources)
        lengths = bags.bag_lengths().view(-1, bags.batch_size)[sources].reshape(-1)
        weights = self._repeated_weights(bags)
        if self._has_absent:
            rows, lengths, weights = _present(rows, lengths, weights)
        if self.is_weighted:
            weights = self._pooling_weights(rows, lengths, weights, bags.batch_size)
        return KeyedJaggedTensor(
            keys=list(self.keys), values=rows, lengths=lengths, weights=weights
        )

    def regroup(self, vectors: KeyedTensor) -> KeyedTensor:
        """Return the outputs, in configured order, contiguous (B, W).

        Args:
            vectors: the pooled vectors of the virtual features, in any order.
        """
        found = vectors.to_dict()
        outputs = []
        for output in self.plan.outputs:
            parts = [found[f"{output.key}#{j}"] for j in range(len(output.lookups))]
            outputs.append(project(output, combine(output, parts), self.projections))
        return KeyedTensor(
            keys=[o.key for o in self.plan.outputs],
            length_per_key=[o.embedding_dim for o in self.plan.outputs],
            values=torch.cat(outputs, dim=1),
        )

    def _table_poolings(self) -> dict[str, set[str]]:
        poolings: dict[str, set[str]] = {}
        for slot in self._unit.slots[0]:
            poolings.setdefault(slot.lookup.table, set()).add(slot.output.pooling)
        return poolings

    def _repeated_weights(self, bags: Bags) -> Tensor | None:
        """Return the weight of the id of every row, (N,)."""
        if bags.weights is None:
            return None
        parts = torch.split(bags.weights, bags.sizes)
        return torch.cat([parts[f] for f in self._unit.sources])

    def _pooling_weights(
        self, rows: Tensor, lengths: Tensor, weights: Tensor | None, batch_size: int
    ) -> Tensor:
        """Return the weights (N,) with which every output is a sum."""
        is_mean = [slot.output.pooling == "mean" for slot in self._unit.slots[0]]
        which = torch.tensor(is_mean, device=rows.device).repeat_interleave(batch_size)
        scale = torch.where(which, 1 / lengths.clamp(min=1), torch.ones_like(which).float())
        scale = scale.repeat_interleave(lengths, output_size=rows.numel())
        return scale if weights is None else scale * weights


def _check(plan: LookupPlan) -> None:
    """Check that TorchRec's embedding bags can serve a plan.

    Raises:
        ValueError: if they cannot.
    """
    for output in plan.outputs:
        if output.pooling == "none":
            raise ValueError(
                f"VirtualFeatures: output '{output.key}' is a sequence; only pooled outputs can be "
                "embedding bags"
            )
        if not output.is_linear:
            raise ValueError(
                f"VirtualFeatures: output '{output.key}' is not linear in its rows (combine "
                f"'{output.combine}' or a row program), so pooling them first would give another "
                "vector; use PlannedTables, or a method that concatenates or sums"
            )
    for table in plan.tables:
        if table.dtype not in _DATA_TYPES:
            raise ValueError(
                f"VirtualFeatures: table '{table.name}' holds {table.dtype}, which TorchRec does "
                f"not train; use one of {list(_DATA_TYPES)}"
            )


def _slots(plan: LookupPlan) -> tuple[Slot, ...]:
    """Return all lookups, table by table; rows are counted from each table's own first."""
    slots = []
    for table in plan.tables:
        for output in plan.outputs:
            for number, lookup in enumerate(output.lookups):
                if lookup.table == table.name:
                    slot = Slot(
                        output=output,
                        number=number,
                        lookup=lookup,
                        first_row=0,
                        num_rows=table.num_rows,
                    )
                    slots.append(slot)
    return tuple(slots)


def _present(
    rows: Tensor, lengths: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return rows, lengths of bags and weights without the rows that are ABSENT."""
    is_kept = rows != ABSENT
    ends = torch.cumsum(lengths, 0)
    kept = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(is_kept, 0)])
    lengths = (kept[ends] - kept[ends - lengths]).to(lengths.dtype)
    return rows[is_kept], lengths, None if weights is None else weights[is_kept]
