import pytest

from recemb.train.launch import Launch, first_node, launch_of

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
# As srun sets them for the second task of the second machine, the job's third step.
SRUN = {
    "SLURM_JOB_ID": "1001",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[05-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
SUBMITIT_LOCAL = {
    "SUBMITIT_LOCAL_JOB_ID": "4242",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}


def test_without_a_launcher_a_process_is_alone() -> None:
    assert launch_of({"HOME": "/"}) == Launch(rank=0, local_rank=0, world_size=1)


def test_torchrun_leaves_the_meeting_place_to_torch() -> None:
    expected = Launch(rank=3, local_rank=1, world_size=4, meeting_place="env://")
    assert launch_of(TORCHRUN) == expected


def test_srun_s_tasks_meet_on_the_first_machine_of_their_step() -> None:
    found = launch_of(SRUN)
    assert (found.rank, found.local_rank, found.world_size) == (3, 1, 4)
    assert found.meeting_place.startswith("tcp://gpu07:")


def test_all_tasks_of_a_step_meet_at_one_port_and_other_steps_at_others() -> None:
    places = {launch_of(SRUN | {"SLURM_PROCID": str(r)}).meeting_place for r in range(4)}
    others = [SRUN | {"SLURM_STEP_ID": "3"}, SRUN | {"SLURM_JOB_ID": "1002"}]
    assert len(places) == 1
    assert len(places | {launch_of(its).meeting_place for its in others}) == 3


@pytest.mark.parametrize("job", [1, 999, 2**31])
def test_the_port_is_none_that_linux_gives_to_outgoing_connections(job: int) -> None:
    place = launch_of(SRUN | {"SLURM_JOB_ID": str(job)}).meeting_place
    assert 1024 < int(place.rpartition(":")[2]) < 32768


def test_the_user_may_name_the_meeting_place() -> None:
    named = SRUN | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
    assert launch_of(named).meeting_place == "tcp://10.0.0.7:29500"


def test_a_batch_script_s_own_process_is_no_task() -> None:
    batch = {k: v for k, v in SRUN.items() if k != "SLURM_STEP_NUM_TASKS"}
    assert launch_of(batch | {"SLURM_PROCID": "0"}).world_size == 1


def test_torchrun_inside_a_slurm_step_comes_before_it() -> None:
    assert launch_of(SRUN | TORCHRUN).meeting_place == "env://"


def test_world_size_1_lets_each_task_train_alone() -> None:
    assert launch_of(SRUN | {"WORLD_SIZE": "1"}) == Launch()


def test_one_task_is_alone() -> None:
    assert launch_of(SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Launch()


def test_submitit_s_local_tasks_meet_on_this_machine() -> None:
    found = launch_of(SUBMITIT_LOCAL)
    assert (found.rank, found.local_rank, found.world_size) == (1, 1, 2)
    assert found.meeting_place.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node3", "node3"),
        ("node3,other", "node3"),
        ("node[001-003,007]", "node001"),
        ("node[7,9-12]-ib0,login", "node7-ib0"),
        ("rack[1-2]node[04-05],x", "rack1node04"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
