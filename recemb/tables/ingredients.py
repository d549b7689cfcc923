"""What planned tables are made of beside their plan: buffers, and what fills the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recemb.tables.backend import Backend
from recemb.tables.bounds import Bounds
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.named_tensors import NamedTensors
from recemb.tables.spec import TableSpec
from recemb.tables.transform import TransformFactory


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What tables on the meta device keep, so that they can be made elsewhere.

    Attributes:
        backend: the arguments of `PlannedTables`, here and below.
        bounds: likewise.
        buffers: likewise.
        initial: likewise.
        transform: likewise.
        seed: likewise.
    """

    backend: Backend
    bounds: Bounds
    buffers: Mapping[str, Tensor]
    initial: Mapping[str, Initial | Tensor]
    transform: TransformFactory | None
    seed: int


def plan_buffers(
    plan: LookupPlan, buffers: Mapping[str, Tensor], device: torch.device
) -> NamedTensors:
    """Return the buffers, on `device`, if they are what the plan needs.

    Raises:
        ValueError: if one that the plan names is missing, or holds a value that is too large.
    """
    lookups = [lookup for o in plan.outputs for lookup in o.all_lookups]
    needed = set(plan.buffers) | {b for lookup in lookups for b in lookup.row.buffers}
    if missing := sorted(needed - buffers.keys()):
        raise ValueError(f"PlannedTables: the plan reads buffers {missing}; pass them")
    for name, limit in plan.buffers.items():
        if buffers[name].device.type != "meta" and buffers[name].numel():
            largest = int(buffers[name].max())
            if largest >= limit:
                raise ValueError(
                    f"PlannedTables: buffer '{name}' holds {largest}, but the plan says that "
                    f"its values are below {limit}"
                )
    return NamedTensors(buffers, device)


def check_outputs(plan: LookupPlan, outputs: Mapping[str, tuple[TableSpec, str]]) -> None:
    """Check that a plan and specs name the same vectors.

    Args:
        plan: the plan.
        outputs: table and feature of each key of the specs, in order.

    Raises:
        ValueError: if they do not.
    """
    expected = {key: (feature, spec.pooling) for key, (spec, feature) in outputs.items()}
    planned = {o.key: (o.feature, o.pooling) for o in plan.outputs}
    if list(expected.items()) != list(planned.items()):
        wrong = [k for k in {**expected, **planned} if expected.get(k) != planned.get(k)]
        raise ValueError(
            f"PlannedTables: plan and specs differ in feature, pooling or order of "
            f"{wrong or 'their keys'}; make one output of the plan for each key of the specs"
        )
