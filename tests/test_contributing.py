"""The worked example of CONTRIBUTING.md works as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = (CHECKOUT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
MODEL = "recemb/models/query.py"
CONFIGURATION = "conf/model/query.yaml"


@pytest.fixture
def model() -> torch.nn.Module:
    arguments = yaml.safe_load(EXAMPLES[CONFIGURATION])
    arguments.pop("_target_")
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(compile(EXAMPLES[MODEL], MODEL, "exec"), namespace)
    return namespace["Query"](num_dense=2, embedding_dims=(3, 3), **arguments)


def test_example_model_computes_its_formula(model: torch.nn.Module) -> None:
    dense, vectors = torch.randn(5, 2), torch.randn(5, 6)
    linear = dense @ model.dense.weight[0] + model.dense.bias
    expected = (vectors[:, :3] + vectors[:, 3:]) @ model.query + linear
    # Sums of five float32 products in another order.
    torch.testing.assert_close(model.from_values(dense, vectors), expected, rtol=1e-5, atol=1e-6)


def test_example_keys_are_the_constructor_s_arguments(model: torch.nn.Module) -> None:
    target = yaml.safe_load(EXAMPLES[CONFIGURATION])["_target_"]
    assert target == f"{MODEL.removesuffix('.py').replace('/', '.')}.{type(model).__name__}"


def test_example_keeps_the_house_style(tmp_path: Path) -> None:
    path = tmp_path / "query.py"
    path.write_text(EXAMPLES[MODEL])
    settings = ["--config", str(CHECKOUT / "pyproject.toml"), str(path)]
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *settings]
        ended = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
