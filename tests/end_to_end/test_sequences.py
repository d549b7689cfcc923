"""Behaviour logs go from files in the publishers' formats to a trained DARE, by the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from recemb.cli import main as command
from recemb.cli.train import train

NUM_ROWS = 12 * 40


def write(folder: Path, name: str, header: str | None, row: str) -> None:
    """Write 12 users' behaviours, 40 each."""
    draw = np.random.default_rng(0)
    items = draw.integers(1, 200, NUM_ROWS)
    lines = [
        row.format(user=n % 12, item=items[n], category=items[n] % 9, time=n)
        for n in range(NUM_ROWS)
    ]
    folder.mkdir()
    (folder / name).write_text("\n".join([*([header] if header else []), *lines, ""]))


FORMATS = {
    "taobao": ("UserBehavior.csv", None, "{user},{item},{category},pv,{time}"),
    "tmall": (
        "user_log_format1.csv",
        "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type",
        "{user},{item},{category},1,1,{time},0",
    ),
    "amazon": (
        "Toys.jsonl",
        None,
        '{{"user_id": "u{user}", "parent_asin": "i{item}", "timestamp": {time}}}',
    ),
}


def write_metadata(folder: Path) -> None:
    """Write what Amazon has beside the reviews."""
    lines = [json.dumps({"parent_asin": f"i{i}", "categories": [f"c{i % 9}"]}) for i in range(200)]
    (folder / "meta_Toys.jsonl").write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize("model", ["dare", "dnn"])
@pytest.mark.parametrize("data", FORMATS)
def test_a_log_becomes_a_trained_model(tmp_path: Path, data: str, model: str) -> None:
    write(tmp_path / "raw", *FORMATS[data])
    if data == "amazon":
        write_metadata(tmp_path / "raw")
    overrides = [
        *(f"data={data}", f"model={model}", "optimizer=adam", "embedding_dim=4", "name=test"),
        *("data.min_behaviours=20", "data.max_history=30", f"data.raw={tmp_path}/raw"),
        *("logger=none", "progress=false", "trainer.batch_size=32", "trainer.max_steps=4"),
        *(f"paths.run={tmp_path}/run", f"paths.cache={tmp_path}/cache", "trainer.num_threads=1"),
    ]
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        summary = train(compose("train", overrides=overrides))
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 4
    for metric in ("test/auc", "test/gauc"):
        assert 0 <= summary["metrics"][metric] <= 1


def recemb(*words: str) -> int:
    """Run the command; return its status, however it ends."""
    try:
        return command.main(list(words))
    except SystemExit as ended:
        return int(str(ended.code))


def test_a_log_of_one_s_own_is_trained_on_inspected_exported_and_scored(tmp_path: Path) -> None:
    row = "user {user};{item:03d};kind {category};{time}"
    write(tmp_path / "raw", "log.csv", "who;what;kind;when", row)
    run = tmp_path / "run"
    words = [
        *("data=behaviours", f"data.raw={tmp_path}/raw", "data.files=[log.csv]"),
        *("data.keys=string", "data.text.delimiter=';'", "model=dare", "optimizer=adam"),
        "data.columns={user: who, time: when, item: what, category: kind}",
        *("embedding=per_role", "+embedding@embedding.attention=int8", "embedding_dim=4"),
        *("trainer.batch_size=64", "trainer.max_steps=4", "trainer.num_threads=1"),
        *("logger=none", "progress=false", f"paths.run={run}", f"paths.cache={tmp_path}/cache"),
    ]
    assert recemb("train", *words) == 0
    assert recemb("inspect", str(run), "num_batches=1") == 0
    assert recemb("export", f"run={run}", f"out={tmp_path}/model") == 0
    (tmp_path / "rows.csv").write_text(
        "item,category,item_history,category_history\n"
        "007,kind 7,001;002;003,kind 1;kind 2;kind 3\n"
        "007,kind 7,,\n"
        "nothing,nothing,nothing,nothing\n"
    )
    files = [f"in={tmp_path}/rows.csv", f"out={tmp_path}/scored.csv", "progress=false"]
    assert recemb("predict", f"model={tmp_path}/model", *files) == 0
    scored = [line.split(",") for line in (tmp_path / "scored.csv").read_text().splitlines()]
    values = [float(row[-1]) for row in scored[1:]]
    assert all(0 < value < 1 for value in values)
    assert len(set(values)) == 3
