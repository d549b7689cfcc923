"""What is not finite is not saved, wherever it lies."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recemb.checkpoint.store import CheckpointStore
from recemb.methods.low_dimension import LowDimension
from recemb.tables import Budget, TableOptimizer, Tables, TableSpec, full_tables
from recemb.tables.joined import JoinedTables
from recemb.train.saved_states import SavedStates

ADAM = TableOptimizer(kind="adam")
# A table, and a part, may have the names of what is left out.
USER = TableSpec(name="optimizer", num_embeddings=5, embedding_dim=4, feature_names=("user",))
ITEM = TableSpec(name="item", num_embeddings=200, embedding_dim=8, feature_names=("item",))


def low(specs: list[TableSpec]) -> Tables:
    return LowDimension().build(
        specs, {}, Budget(ratio=0.6), optimizer=ADAM, seed=0, device=torch.device("cpu")
    )


def joined() -> JoinedTables:
    parts = {"optimizer": full_tables([USER], optimizer=ADAM), "other": low([ITEM])}
    return JoinedTables([USER, ITEM], parts)


def save(folder: Path, tables: Tables, model: torch.nn.Module, **extra: Any) -> list[str]:
    """Return what is in the folder afterwards."""
    store = CheckpointStore(folder)
    state = {"tables": tables.state_dict(), "model": model.state_dict(), **extra}
    states = SavedStates(store, identity=tables.identity(), keep=2)
    states.save(3, state, is_best=False)
    return [str(name) for name in store.names("step")]


ROWS = "parts.optimizer.embedding_bags.optimizer.weight"


@pytest.mark.parametrize(
    "name",
    [ROWS, "parts.other.embedding_bags.item.weight", "parts.other.projections.item"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_tensor_of_a_part_is_saved_if_it_is_not_finite(
    tmp_path: Path, name: str, value: float
) -> None:
    tables = joined()
    tables.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=f"{name} is not finite after update 3, which was"):
        save(tmp_path / "c", tables, torch.nn.Linear(2, 1))
    assert not (tmp_path / "c").exists()


def test_a_projection_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    tables = low([ITEM])
    tables.state_dict()["projections.item"][0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"^projections\.item is not finite"):
        save(tmp_path / "c", tables, torch.nn.Linear(2, 1))


def test_a_model_s_buffer_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm1d(2)
    model.running_mean.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"model\.running_mean is not finite"):
        save(tmp_path / "c", joined(), model)


def test_optimizer_state_may_be_infinite(tmp_path: Path) -> None:
    tables = joined()
    full = full_tables([USER], optimizer=ADAM)
    for its, prefix in ((tables, "parts.optimizer."), (full, "")):
        state = its.state_dict()
        names = [name for name in state if name.startswith(f"{prefix}optimizer.optimizer.")]
        assert len(names) == 3
        for name in names:
            if state[name].is_floating_point():
                state[name].fill_(float("inf"))
        found = save(tmp_path / (prefix or "full"), its, torch.nn.Linear(2, 1))
        assert found == ["step-0000000003"]
