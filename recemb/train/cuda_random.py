"""The states of CUDA's random generators in a checkpoint: each rank has its own."""

from collections.abc import Mapping
from typing import Any

import torch

from recemb.ids.hashing import hash_seed
from recemb.train.ranks import Ranks

_FIRST, _ALL = "random_cuda", "random_cuda_ranks"


def cuda_states(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Return the states to save, the same on every rank; collective.

    Those are the first rank's, and of several ranks those of all, (world_size, bytes); None on a
    device without CUDA.

    Args:
        ranks: those that train.
        device: that this rank trains on.
    """
    if device.type != "cuda":
        return {_FIRST: None, _ALL: None}
    states = ranks.everyone(torch.cuda.get_rng_state(device))
    return {_FIRST: states[0], _ALL: torch.stack(states) if ranks.world_size > 1 else None}


def set_cuda_states(
    ranks: Ranks, device: torch.device, saved: Mapping[str, Any], *, seed: int
) -> None:
    """Take up the states of a checkpoint; without CUDA, here or there, do nothing.

    As on the CPU (`Ranks.part_random`): where as many ranks saved, each goes on with its own
    numbers; where others did, or all are in one (a checkpoint of an earlier version), the first
    goes on with the first's and the others get new ones.

    Args:
        ranks: those that train.
        device: that this rank trains on.
        saved: what holds what `cuda_states` returned.
        seed: of the other ranks' new numbers.
    """
    first, states = saved.get(_FIRST), saved.get(_ALL)
    if device.type != "cuda" or first is None:
        return
    if states is not None and states.shape[0] == ranks.world_size:
        # A copy: torch reads a state as if it lay where memory for a tensor begins.
        torch.cuda.set_rng_state(states[ranks.rank].clone(), device)
    elif ranks.rank:
        torch.cuda.manual_seed_all(hash_seed(seed, "cuda", ranks.rank))
    else:
        torch.cuda.set_rng_state(first, device)
