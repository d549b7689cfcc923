"""The benchmarks of sequence models: what they compare is comparable, what they keep is kept."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from recemb.data.synthetic_sequences import SyntheticSequences
from recemb.models.sequence.dare import DARE
from recemb.models.sequence.twin import TWIN
from recemb.report.sequence_health import role_report
from recemb.tables.full import full_tables

FOLDERS = ("accuracy", "serving", "training")
Load = Callable[[str], ModuleType]
# Sums of some tens of float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def test_the_published_procedure_attends_as_recemb_does(load: Load) -> None:
    turns = load("sequence_turns")
    schema = turns.sequence_schema(500, 30)
    published = load("sequence_published").PublishedDARE(schema, dim=8, top_k=5)
    specs = DARE.table_specs(schema, embedding_dim=8, options={})
    tables = full_tables(specs, init_std=1.0)
    model = DARE.for_tables(schema, tables, {"top_k": 5})
    with torch.no_grad():
        for spec in specs:
            copy = published.tables[spec.name.replace(".", "_")]
            copy.weight.copy_(tables.table(spec.name))
        batch = turns.draw_batch(schema, 7, 30, seed=1)
        inputs = model.inputs(batch, tables)
        expected = model.weights(inputs)
        ids = [
            {c: batch.features[f"{c}{suffix}"].values().view(7, -1) for c in published.columns}
            for suffix in ("_history", "")
        ]
        keys, query = (published._vectors("attention", its) for its in ids)
        full = published._attention(keys, query, torch.ones(7, 30, dtype=torch.bool))
        found = torch.zeros(7, 30, dtype=torch.bool).scatter(1, full.topk(5).indices, True)
        torch.testing.assert_close(full, expected.full, **ROUNDING)
        chosen = published._attention(keys, query, found)
        torch.testing.assert_close(chosen, expected.retrieved, **ROUNDING)


def test_a_published_loss_of_even_chances_is_that_of_two_coins(load: Load) -> None:
    turns = load("sequence_turns")
    schema = turns.sequence_schema(500, 30)
    published = load("sequence_published").PublishedDARE(schema, dim=8)
    for head in (published.main, published.auxiliary):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    loss = published.loss(turns.draw_batch(schema, 7, 30, seed=1)).item()
    # The penalty of parameters drawn from N(0, 0.01) is far below this.
    assert math.isclose(loss, 2 * math.log(2), rel_tol=1e-4)


def test_every_contender_of_the_search_agrees_with_its_slow_path(load: Load) -> None:
    turns, search = load("sequence_turns"), load("search")
    schema = turns.sequence_schema(200, 40)
    with torch.no_grad():
        made = list(search.contenders(schema, 8, torch.device("cpu")))
        for contender in made:
            contender.check(turns.draw_batch(schema, 3, 40, 1))
            contender.search(turns.draw_batch(schema, 2, 40, 1))
    assert [c.width for c in made] == [8, 4, 2, 8, 8, 8]


def test_rows_that_are_written_are_read_again(load: Load, tmp_path: Path, monkeypatch) -> None:
    runs = load("sequence_runs")
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    rows = {("TWIN, width 4", "2"): {"variant": "TWIN, width 4", "seed": "2", "auc": "0.5"}}
    assert runs.write_results("some", rows, ["# Some"]) == "# Some\n"
    assert runs.read_rows("some", ("variant", "seed")) == rows
    assert runs.read_rows("none", ("variant", "seed")) == {}


def test_rows_of_before_a_column_came_are_shown_without_it(load: Load) -> None:
    planted = load("planted")
    old = {column: "0.5" for column in planted.COLUMNS if "batches" not in column}
    (cell, row), *_ = planted.complete({("TWIN", "1"): {**old, "variant": "TWIN"}}).items()
    assert list(row) == list(planted.COLUMNS)
    assert row["conflicting_batches_item"] == ""
    lines = planted.lines_of({cell: row})
    assert "| item | 0.5 | 0.500 | - |" in lines
    new = {**row, **{f"conflicting_batches_{part}": "0.3" for part in planted.PARTS}}
    assert "| item | 0.5 | 0.500 | 0.30 |" in planted.lines_of({cell: new})


def test_conflicts_are_counted_by_rows_and_by_updates(load: Load, tmp_path: Path) -> None:
    planted = load("planted")
    settings = {"num_users": 20, "length": 40, "num_items": 60, "num_categories": 6}
    prepared = SyntheticSequences(**settings, max_history=12).prepare(Path(), tmp_path / "set")
    found = planted.first_gradients(prepared, seed=1)
    options = {"top_k": 10, "hidden_units": [64], "auxiliary_units": [64]}
    specs = TWIN.table_specs(prepared.schema, embedding_dim=8, options=options)
    tables = full_tables(specs, init_std=0.01, seed=1)
    torch.manual_seed(1)
    model = TWIN.for_tables(prepared.schema, tables, options)
    # There is one batch, so that it is also the mean.
    batches = list(prepared.batches("train", batch_size=512, seed=1, epoch=0, shuffle=True))
    assert len(batches) == 1
    for part in planted.PARTS:
        report = role_report(model, tables, batches, column=part)
        assert found[f"conflicting_rows_{part}"] == pytest.approx(report.conflicting_rows)
        assert found[f"conflicting_batches_{part}"] == report.conflicting_batches


def test_a_finished_cell_is_not_run_again(load: Load, tmp_path: Path) -> None:
    runs = load("sequence_runs")
    folder = tmp_path / "TWIN_w_o_TR-3-1"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    options = argparse.Namespace(work=tmp_path, threads=1)
    assert runs.trained(("TWIN w/o TR", "3", "1"), ("no=override",), options) == folder


def test_every_sequence_model_of_the_configuration_takes_part(load: Load) -> None:
    found = load("sequences_movielens").models()
    assert {"dare", "twin", "sdim"} <= set(found)
    assert "deepfm" not in found
