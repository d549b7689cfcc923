"""Rows of results as CSV."""

import csv
from pathlib import Path

from recemb.report.rows import write_rows


def test_metrics_stand_between_sizes_and_circumstances(tmp_path: Path) -> None:
    rows = [
        {"method": "hash", "budget": None, "status": "ok", "test/auc": 0.75, "val/auc": None},
        {"method": "hash", "budget": 0.1, "status": "failed", "error": 'it said "no",\nand left'},
    ]
    write_rows(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    names = list(found[0])
    assert names.index("floor_bytes") < names.index("test/auc") < names.index("seconds")
    assert found[0]["test/auc"] == "0.75"
    assert found[0]["budget"] == found[0]["val/auc"] == found[1]["test/auc"] == ""
    assert found[1]["error"] == 'it said "no",\nand left'


def test_a_file_is_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for number in range(2):
        write_rows(tmp_path / "rows.csv", [{"method": f"m{number}"}])
    assert (tmp_path / "rows.csv").read_text().splitlines()[1].startswith("m1,")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
