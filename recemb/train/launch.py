"""How this process was started among those that train together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Below the ports that Linux gives to outgoing connections (32768 and up).
_FIRST_PORT, _NUM_PORTS = 16_000, 16_000


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's place among those that were started together; alone where there is one.

    Attributes:
        rank: its number, from 0.
        local_rank: its number on its machine.
        world_size: how many there are.
        meeting_place: where they find each other, in the words of torch.distributed.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    meeting_place: str = ""


def launch_of(environment: Mapping[str, str]) -> Launch:
    """Return what a launcher has told this process in its environment.

    In this order: torchrun (WORLD_SIZE; 1 says that this process trains alone, whatever else is
    set), SLURM's srun, submitit's local executor. The latter two leave the meeting place open: the
    first machine of the step, and a port made of the job's number, unless MASTER_ADDR and
    MASTER_PORT say otherwise.
    """
    if "WORLD_SIZE" in environment:
        return _torchrun(environment)
    # Not SLURM_NTASKS: a batch script has that, too, before any task is started.
    if "SLURM_STEP_NUM_TASKS" in environment:
        nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
        numbers = [environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        return _started_by(
            environment,
            rank="SLURM_PROCID",
            local_rank="SLURM_LOCALID",
            world_size="SLURM_STEP_NUM_TASKS",
            address=first_node(nodes),
            job=16 * int(numbers[0]) + int(numbers[1]),
        )
    if "SUBMITIT_LOCAL_GLOBALID" in environment:
        return _started_by(
            environment,
            rank="SUBMITIT_LOCAL_GLOBALID",
            local_rank="SUBMITIT_LOCAL_LOCALID",
            world_size="SUBMITIT_LOCAL_NTASKS",
            address="127.0.0.1",
            job=int(environment["SUBMITIT_LOCAL_JOB_ID"]),
        )
    return Launch()


def first_node(nodes: str) -> str:
    """Return the first machine of a list as SLURM writes it, such as `a[01-03,7]-x,b2`: `a01-x`."""
    first = re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _torchrun(environment: Mapping[str, str]) -> Launch:
    world_size = int(environment["WORLD_SIZE"])
    if world_size == 1:
        return Launch()
    rank = int(environment["RANK"])
    local_rank = int(environment.get("LOCAL_RANK", rank))
    return Launch(rank=rank, local_rank=local_rank, world_size=world_size, meeting_place="env://")


def _started_by(
    environment: Mapping[str, str],
    *,
    rank: str,
    local_rank: str,
    world_size: str,
    address: str,
    job: int,
) -> Launch:
    """Read a launcher's variables of these names.

    Args:
        environment: what it has told this process.
        rank: the variable that holds it; likewise `local_rank` and `world_size`.
        local_rank: see `rank`.
        world_size: see `rank`.
        address: of the first process, unless MASTER_ADDR says otherwise.
        job: its number, of which the port is made, unless MASTER_PORT says otherwise.
    """
    if int(environment[world_size]) == 1:
        return Launch()
    address = environment.get("MASTER_ADDR", address)
    port = environment.get("MASTER_PORT", str(_FIRST_PORT + job % _NUM_PORTS))
    return Launch(
        rank=int(environment[rank]),
        local_rank=int(environment[local_rank]),
        world_size=int(environment[world_size]),
        meeting_place=f"tcp://{address}:{port}",
    )
