"""`recemb plan`: bytes without tables."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("data.num_train=2000", "data.num_val=200", "data.num_test=200", "data.scale=0.001")


def plan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recemb", "plan", *SMALL, f"paths.cache={folder / 'cache'}", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plan_is_printed_and_leaves_no_files(tmp_path: Path) -> None:
    done = plan(tmp_path, "embedding=unified", "budget=0.1")
    assert done.returncode == 0, done.stderr
    assert "feasible: the budget 0.1 is kept" in done.stdout
    assert "optimizer_state" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_infeasible_budget_says_the_least_and_fails(tmp_path: Path) -> None:
    done = plan(tmp_path, "embedding=full", "budget=0.5")
    assert done.returncode == 1
    assert "infeasible: the budget 0.5 is below this method's least, 1.00000" in done.stdout


def rank_bytes(page: str) -> list[int]:
    found = re.findall(r"^rank \d+ +([\d,]+) bytes of rows and state$", page, re.MULTILINE)
    return [int(size.replace(",", "")) for size in found]


def test_bytes_of_every_rank_are_printed(tmp_path: Path) -> None:
    page = plan(tmp_path, "sharding=row_wise", "world_size=4").stdout
    sizes = rank_bytes(page)
    assert len(sizes) == 4
    # A table's last block is shorter; 26 tables of rows of 64 values and fewer.
    assert max(sizes) - min(sizes) < 26 * 4 * 4 * 128
    whole = re.search(r"^training +([\d,]+) bytes$", page, re.MULTILINE)
    assert whole is not None
    assert abs(sum(sizes) - int(whole[1].replace(",", ""))) < 1000


def test_a_plan_for_gpus_is_made_without_one(tmp_path: Path) -> None:
    done = plan(tmp_path, "sharding=auto", "world_size=2", "trainer.device=cuda")
    assert done.returncode == 0, done.stderr
    assert len(rank_bytes(done.stdout)) == 2


@pytest.mark.parametrize("word", ["embeding=hash", "budgt=0.1"])
def test_a_misspelt_override_is_explained(tmp_path: Path, word: str) -> None:
    done = plan(tmp_path, word)
    assert done.returncode == 2
    assert "did you mean" in done.stderr
