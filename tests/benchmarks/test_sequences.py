"""The benchmarks of sequence models: what they compare is comparable, what they keep is kept."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from recemb.models.sequence.dare import DARE
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
        made = list(search.contenders(schema, 8))
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
