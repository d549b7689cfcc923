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


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What tables on the meta device keep, so that they can be made elsewhere.

    Attributes:
        backend: the arguments of `PlannedTables`, here and below.
        bounds: likewise.
        buffers: likewise.
        initial: likewise.
        seed: likewise.
    """

    backend: Backend
    bounds: Bounds
    buffers: Mapping[str, Tensor]
    initial: Mapping[str, Initial | Tensor]
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
