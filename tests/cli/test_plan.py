"""`recemb plan`: bytes without tables."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recemb.cli import main as command

SMALL = ("data.num_train=2000", "data.num_val=200", "data.num_test=200", "data.scale=0.001")
Plan = Callable[..., tuple[int, str]]


def test_a_plan_is_printed_and_leaves_no_files(tmp_path: Path) -> None:
    words = (f"paths.cache={tmp_path / 'cache'}", "embedding=unified", "budget=0.1")
    done = subprocess.run(
        [sys.executable, "-m", "recemb", "plan", *SMALL, *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "feasible: the budget 0.1 is kept" in done.stdout
    assert "optimizer_state" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plan(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Plan in this process: other words to the exit status and the page."""
    monkeypatch.setattr(sys, "argv", [])

    def planned(*words: str) -> tuple[int, str]:
        status = command.main(["plan", *SMALL, f"paths.cache={cache}", *words])
        return status, capsys.readouterr().out

    return planned


def test_an_infeasible_budget_says_the_least_and_fails(plan: Plan) -> None:
    status, page = plan("embedding=full", "budget=0.5")
    assert status == 1
    assert "infeasible: the budget 0.5 is below this method's least, 1.00000" in page


def rank_bytes(page: str) -> list[int]:
    found = re.findall(r"^rank \d+ +([\d,]+) bytes of rows and state$", page, re.MULTILINE)
    return [int(size.replace(",", "")) for size in found]


def test_bytes_of_every_rank_are_printed(plan: Plan) -> None:
    _, page = plan("sharding=row_wise", "world_size=4")
    sizes = rank_bytes(page)
    assert len(sizes) == 4
    # A table's last block is shorter; 26 tables of rows of 64 values and fewer.
    assert max(sizes) - min(sizes) < 26 * 4 * 4 * 128
    whole = re.search(r"^training +([\d,]+) bytes$", page, re.MULTILINE)
    assert whole is not None
    assert abs(sum(sizes) - int(whole[1].replace(",", ""))) < 1000


def test_a_plan_for_gpus_is_made_without_one(plan: Plan) -> None:
    status, page = plan("sharding=auto", "world_size=2", "trainer.device=cuda")
    assert status == 0
    assert len(rank_bytes(page)) == 2
