"""Behaviour logs go from files in the publishers' formats to a trained DARE, by the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from recemb.cli.train import train

NUM_ROWS = 12 * 40


def write(folder: Path, name: str, header: str | None, row: str) -> None:
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
}


@pytest.mark.parametrize("model", ["dare", "dnn"])
@pytest.mark.parametrize("data", FORMATS)
def test_a_log_becomes_a_trained_model(tmp_path: Path, data: str, model: str) -> None:
    write(tmp_path / "raw", *FORMATS[data])
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
