"""What several ranks hold, brought together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from recemb.tables.tensor_chunks import TensorChunks, box_of


def gathered(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the values (U, ...) of all ranks, one rank's after the other's; collective.

    Args:
        values: (U, ...), where U is each rank's own.
        group: the ranks.
    """
    size = torch.tensor([values.shape[0]], device=values.device)
    sizes = [torch.zeros_like(size) for _ in range(group.size())]
    dist.all_gather(sizes, size, group=group)
    counts = [int(s) for s in sizes]
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gathered_state(state: Mapping[str, Any], group: dist.ProcessGroup) -> dict[str, Any] | None:
    """Return a state_dict with whole tensors on rank 0, on the CPU, None elsewhere; collective.

    For tables that one process can hold.

    Args:
        state: that of sharded tables: tensors, and `TensorChunks` of sharded ones.
        group: the ranks.
    """
    found: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, TensorChunks):
            found[name] = _whole(value, group)
        else:
            found[name] = value.detach().cpu().clone()
    return found if group.rank() == 0 else None


def _whole(value: TensorChunks, group: dist.ProcessGroup) -> Tensor:
    """Return the whole tensor on rank 0, and none of it elsewhere."""
    boxes: list[Any] = [None] * group.size()
    mine = [(chunk.offsets, tuple(chunk.values.shape)) for chunk in value.chunks]
    dist.all_gather_object(boxes, mine, group=group)
    whole = torch.empty(value.shape if group.rank() == 0 else (0,), dtype=value.dtype)
    done = set()
    for owner, its in enumerate(boxes):
        for number, (offsets, shape) in enumerate(its):
            if offsets in done:
                continue  # A copy of what another rank has sent.
            done.add(offsets)
            part = None
            if group.rank() == owner:
                part = value.chunks[number].values.contiguous().cpu()
            elif group.rank() == 0:
                part = torch.empty(shape, dtype=value.dtype)
                dist.recv(part, group=group, group_src=owner)
            if group.rank() == 0 and part is not None:
                box_of(whole, offsets, shape).copy_(part)
            elif part is not None:
                dist.send(part, group=group, group_dst=0)
    return whole
