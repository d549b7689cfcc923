"""The GPU benchmark's code, on a CPU: what it writes, what it refuses, and how it judges."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDERS = ("kernels", "kernels/gpu")
_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels" / "gpu"


def time_row(contender: str, milliseconds: float, **named: Any) -> dict[str, Any]:
    """Return a row as the benchmark makes them."""
    row = {"case": "B8 plain rows", "contender": contender, "operation": "forward",
           "launch": "graph", "milliseconds": milliseconds, "copy_share": 0.1, "is_dram": False,
           "row_bytes": 64, "note": ""}  # fmt: skip
    return {**row, **named}


def verdict_of(load: Any, rows: list[dict[str, Any]], words: str) -> Any:
    (found,) = [v for v in load("gpu_verdicts").verdicts(rows) if words in v.bound]
    return found


def small_case(load: Any, **named: Any) -> Any:
    return load("gpu_case").Case(
        batch_size=5, length=3, width=8, num_tables=3, fewest_rows=20, most_rows=50, **named
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, str]]]:
    """Run everything at tiny sizes; return the finished process and the rows that it wrote."""
    folder = tmp_path_factory.mktemp("dry")
    command = [sys.executable, str(_FOLDER / "run.py"), "--dry-run", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "do not edit" in (folder / "kernels_gpu.md").read_text()
    return done, list(csv.DictReader((folder / "kernels_gpu.csv").read_text().splitlines()))


def test_dry_run_covers_every_contender_and_pair(dry_run: Any, load: Any) -> None:
    names = {row["contender"] for row in dry_run[1]}
    assert {"recemb", "torch embedding_bag", "torch.compile"} <= names
    pairs = load("pairs").PAIRS
    assert {f"{p} {side}" for p in pairs for side in ("fused", "unfused")} <= names


def test_dry_run_gives_no_figures(dry_run: Any) -> None:
    for row in dry_run[1]:
        assert {row["milliseconds"], row["p20"], row["p80"]} == {"dry run"}
        assert row["logical_gb_per_second"] == row["copy_share"] == ""
    assert "\tmet\t" not in dry_run[0].stdout


def test_rows_carry_commit_versions_device_and_seed(dry_run: Any) -> None:
    row = dry_run[1][0]
    assert row["commit"]
    assert row["torch"] == torch.__version__
    assert row["gpu"] == "none (dry run)"
    assert row["seed"] == "0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="hardware: there is a CUDA device")
def test_refuses_without_a_gpu(load: Any) -> None:
    with pytest.raises(SystemExit, match=r"needs a CUDA device.*--dry-run"):
        load("run").main([])


def test_dry_run_writes_nothing_unless_told(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("run")
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run.main(["--dry-run", "--only", "composed"]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_planted_error_is_found_before_timing(
    load: Any, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders, run, clock = load("contenders"), load("run"), load("clock")
    right = getattr(contenders.Recemb, operation)

    def wrong_forward(self: Any, batch: int) -> torch.Tensor:
        found: torch.Tensor = right(self, batch) + 1e-2
        return found

    def wrong_backward(self: Any, batch: int, out: torch.Tensor) -> None:
        right(self, batch, out)
        self.weight += 1e-2

    planted = wrong_forward if operation == "forward" else wrong_backward
    monkeypatch.setattr(contenders.Recemb, operation, planted)
    monkeypatch.setattr(run, "contenders", lambda: [contenders.Recemb])
    timer = clock.Clock(device="cpu")
    (row,) = run.lookup_rows(small_case(load), timer, run.Ceilings(timer), 0)
    assert row["note"].startswith("wrong")
    assert "milliseconds" not in row


def test_error_of_one_contender_leaves_the_others(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contenders, run, clock = load("contenders"), load("run"), load("clock")

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(contenders.Recemb, "forward", fail)
    monkeypatch.setattr(run, "contenders", lambda: [contenders.Recemb, contenders.Torch])
    timer = clock.Clock(device="cpu")
    rows = list(run.lookup_rows(small_case(load), timer, run.Ceilings(timer), 0))
    assert rows[0]["note"] == "failed: RuntimeError: planted"
    assert {row["contender"] for row in rows[1:]} == {"torch embedding_bag"}


def test_planted_difference_of_a_pair_is_found(load: Any) -> None:
    pairs = load("pairs")
    pair = pairs.Pair(
        name="robe", fused=lambda i: torch.ones(4), unfused=lambda i: torch.zeros(4), note=""
    )
    assert pairs.why_different(pair, torch.float32) == "wrong: 100.00% of the elements differ"


def test_bytes_are_those_of_a_case_by_hand(load: Any) -> None:
    gpu_case = load("gpu_case")
    case = gpu_case.Case(batch_size=2, length=3, width=4, num_tables=1)
    # 6 ids and 3 offsets of 8 bytes, 6 rows in and 2 rows out of 16 bytes; 5 rows are distinct.
    assert gpu_case.moved_bytes(case, 5, "forward") == (72 + 32 + 96, 72 + 32 + 80)
    # 6 gradients, or 2 of bags; 5 rows with 4 bytes of state, read and written.
    assert gpu_case.moved_bytes(case, 5, "backward+update") == (72 + 96 + 200, 72 + 32 + 200)


def test_zipf_ids_follow_the_law(load: Any) -> None:
    gpu_case = load("gpu_case")
    case = gpu_case.Case(batch_size=20_000, length=1, width=1, is_zipf=True, num_tables=1,
                         fewest_rows=1000, most_rows=1000)  # fmt: skip
    values = gpu_case.Data(case, "cpu", 0).values[0]
    counts = values.bincount(minlength=1000).sort(descending=True).values
    # The distribution function of the density x^-1.05 on [1, 1001).
    expected = [(1 - (k + 1) ** -0.05) / (1 - 1001**-0.05) for k in (1, 10, 100)]
    found = [counts[:k].sum().item() / len(values) for k in (1, 10, 100)]
    # Four standard deviations of a share of 20,000 draws are at most 0.015.
    assert found == pytest.approx(expected, abs=0.015)


def test_grid_has_every_combination_and_tables_beyond_caches(load: Any) -> None:
    cases = list(load("gpu_case").grid(quick=False))
    assert len({str(c) for c in cases}) == len(cases) == 2 * 2 * 3 * 2 * 2 * 2 + 4
    assert sum(c.fewest_rows == 4_000_000 for c in cases) == 4


@pytest.mark.parametrize(("share", "verdict"), [(0.75, "met"), (0.74, "not met")])
def test_share_of_the_ceiling_is_judged_on_dram_rows_alone(
    load: Any, share: float, verdict: str
) -> None:
    rows = [time_row("recemb", 1.0, case="a", row_bytes=256, is_dram=True, copy_share=share),
            time_row("recemb", 1.0, case="b", row_bytes=256, copy_share=0.1)]  # fmt: skip
    found = verdict_of(load, rows, "256-byte")
    assert (found.verdict, found.figure) == (verdict, share)
    assert verdict_of(load, rows, "512-byte").verdict == "not measured"


def test_hash_is_judged_against_the_same_case_without(load: Any) -> None:
    rows = [time_row("recemb", 1.00, case="B8 plain rows"),
            time_row("recemb", 1.04, case="B8 hash rows"),
            time_row("recemb", 2.00, case="B9 plain rows"),
            time_row("recemb", 2.12, case="B9 hash rows")]  # fmt: skip
    found = verdict_of(load, rows, "hashing in the kernel")
    assert (found.verdict, found.figure) == ("not met", 1.06)
    assert found.where == "B9 hash rows; 1 of 2 rows keep it"
    assert verdict_of(load, rows[:2], "hashing in the kernel").verdict == "met"


def test_update_is_judged_on_eager_launches_against_fbgemm(load: Any) -> None:
    named = {"operation": "backward+update", "launch": "eager"}
    rows = [time_row("recemb", 2.0, **named), time_row("fbgemm", 2.5, **named)]
    found = verdict_of(load, rows, "backward+update")
    assert (found.verdict, found.figure) == ("met", 1.25)
    assert verdict_of(load, rows[:1], "backward+update").verdict == "not measured"


def test_pairs_fall_back_to_eager_where_nothing_was_captured(load: Any) -> None:
    rows = [time_row("search fused", 1.0, launch="eager"),
            time_row("search unfused", 2.9, launch="eager"),
            time_row("multi-probe fused", 1.0), time_row("multi-probe unfused", 2.0)]  # fmt: skip
    search = verdict_of(load, rows, "DARE")
    assert (search.verdict, search.figure) == ("not met", 2.9)
    assert verdict_of(load, rows, "multi-probe").verdict == "met"


def test_kernel_that_is_wrong_anywhere_keeps_no_bound(load: Any) -> None:
    rows = [time_row("search fused", 1.0), time_row("search unfused", 9.0),
            {"case": "c", "contender": "search fused", "note": "wrong: planted"}]  # fmt: skip
    found = verdict_of(load, rows, "DARE")
    assert (found.verdict, found.where) == ("not met", "c: wrong: planted")


MADE_BY = {"commit": "abc", "triton": "3", "torch": "2"}


def compiled(kernel: str, **changes: object) -> dict[str, object]:
    report = {"kernel": kernel, "case": "c", "target": "cuda:90", "registers": 9, "failure": ""}
    return {**report, **MADE_BY, **changes}


def test_compiler_report_writes_table_and_rows(load: Any, tmp_path: Path) -> None:
    load("aot").write([compiled("k")], tmp_path)
    (row,) = csv.DictReader((tmp_path / "aot.csv").read_text().splitlines())
    assert row == {key: str(value) for key, value in compiled("k").items()}
    assert "1 compilations, 0 failed" in (tmp_path / "aot.md").read_text()


def test_compiler_report_of_one_kernel_leaves_the_others_rows(load: Any, tmp_path: Path) -> None:
    aot = load("aot")
    aot.write([compiled("k"), compiled("other", commit="old")], tmp_path)
    kept = aot.earlier(tmp_path, ["k"])
    assert [(row["kernel"], row["commit"]) for row in kept] == [("other", "old")]
    aot.write([compiled("k"), *kept], tmp_path)
    assert "- commit: abc, old" in (tmp_path / "aot.md").read_text()
