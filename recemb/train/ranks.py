"""The processes that train together, and what they have to agree on.

Shapes: `N` examples.
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from recemb.ids.hashing import hash_seed
from recemb.train.launch import Launch, launch_of
from recemb.train.meeting import name_of_attempt
from recemb.train.roll_call import LostRanksError, RollCall, note_step, wait_while_alive

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; one alone where there are no others.

    Every method that returns what others hold is collective: all ranks call it, in the same order.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def current() -> "Ranks":
        """Return the ranks of the process group, if there is one."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Return whether this process writes and prints for all."""
        return self.rank == 0

    @property
    def timeout(self) -> datetime.timedelta:
        """Return how long ranks wait for one that does not answer; nothing for one alone."""
        if self.world_size == 1:
            return datetime.timedelta()
        # Every store has one, of which torch's stubs do not know.
        found: datetime.timedelta = attrgetter("timeout")(_world().get_group_store())
        return found

    def sums(self, *values: float) -> list[float]:
        """Return each value summed over the ranks, in double precision."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def from_first(self, value: T) -> T:
        """Return the first rank's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def everyone(self, value: T) -> list[T]:
        """Return the values of all ranks, in order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def first_alone(self, name: str, action: Callable[[], object]) -> None:
        """Let the first rank do something; the others wait, however long it takes.

        Args:
            name: of what it does, another one for each call.
            action: what it does.
        """
        if self.is_first:
            action()
        if self.world_size == 1:
            return
        store, key = _world().get_group_store(), f"done/{name}"
        if self.is_first:
            store.set(key, "1")
        else:
            wait_while_alive(store, key, rank=0)
        self.wait()

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.world_size > 1:
            dist.barrier()

    def note_step(self, step: int) -> None:
        """Let the others know the last update that this rank has made; waits for nobody."""
        if self.world_size > 1:
            note_step(_world().get_group_store(), rank=self.rank, step=step)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the ranks, in place.

        A parameter that no rank has a gradient for keeps none.
        """
        if self.world_size == 1 or not parameters:
            return
        # One flat message: latency counts more than the copy, for the dense part is small.
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        counts = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([*(g.float().view(-1) for g in grads), counts.to(grads[0].device)])
        dist.all_reduce(flat)
        *summed, counts = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
        is_used = (counts > 0).tolist()
        for parameter, total, flag in zip(parameters, summed, is_used, strict=True):
            if flag:
                parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def random_states(self) -> Tensor | None:
        """Return the states of all ranks' CPU generators, (world_size, bytes); None for one."""
        if self.world_size == 1:
            return None
        return torch.stack(self.everyone(torch.get_rng_state()))

    def part_random(self, seed: int, states: Tensor | None = None) -> None:
        """Give each rank random numbers of its own, so that their dropout differs.

        The first rank goes on with those it has.

        Args:
            seed: of the other ranks' numbers.
            states: what `random_states` returned; taken up if it was for as many ranks.
        """
        if states is not None and states.shape[0] == self.world_size:
            # A copy: torch reads a state as if it lay where memory for a tensor begins.
            torch.set_rng_state(states[self.rank].clone())
        elif self.rank:
            # Of a seed torch's generator of the CPU takes the low 32 bits alone.
            torch.manual_seed(hash_seed(seed, "random", self.rank))


@contextmanager
def process_group(*, device: str, timeout_seconds: float) -> Iterator[Ranks]:
    """Within this context the processes that were started together train together.

    Who was, `launch_of` says. For a process alone there is nothing to set up.

    Args:
        device: that of the settings: "cuda" and "auto" on a machine with CUDA use NCCL and one GPU
            for each process, everything else gloo.
        timeout_seconds: how long to wait for a rank that does not answer.

    Raises:
        LostRanksError: if ranks do not come or are lost; names them.
    """
    launch = launch_of(os.environ)
    if launch.world_size == 1:
        yield Ranks()
        return
    is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if is_cuda:
        # A launcher may show each process its own GPU alone, or those of the whole machine.
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    # Objects are sent between CPUs.
    _meet(launch, "cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout_seconds)
    roll_call = RollCall(
        _world().get_group_store(),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout_seconds=timeout_seconds,
    )
    try:
        with roll_call:
            yield Ranks.current()
    finally:
        dist.destroy_process_group()
        roll_call.leave()


def _meet(launch: Launch, backend: str, timeout_seconds: float) -> None:
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        store, *_ = next(
            rendezvous(launch.meeting_place, launch.rank, launch.world_size, timeout=timeout)
        )
        store.set_timeout(timeout)
        name = name_of_attempt(
            store,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout_seconds=timeout_seconds,
        )
        dist.init_process_group(
            backend,
            store=PrefixStore(name, store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timeout,
        )
    except (dist.DistError, RuntimeError) as error:
        raise LostRanksError(
            f"rank {launch.rank} of {launch.world_size} did not find the others within "
            f"{timeout_seconds:g} seconds (timeout_seconds): {str(error).splitlines()[0]}. Were "
            "all started, and can all reach the address and port of the first?"
        ) from error


def _world() -> dist.ProcessGroup:
    """Return the group of all ranks."""
    group = dist.group.WORLD
    assert group is not None
    return group
