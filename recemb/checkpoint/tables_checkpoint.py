"""Tables saved and loaded by themselves, for those who train with their own loop.

A folder as `recemb.checkpoint.store` describes it, with the tables' state and what it belongs to.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from recemb.checkpoint.logical import check_identity
from recemb.checkpoint.store import read_folder, save_folder
from recemb.tables.tables import Tables

_ROWS, _WEIGHT = "embedding_bags.", ".weight"


def save_tables(tables: Tables, folder: Path | str) -> None:
    """Write tables, their optimizer's state included, into a folder, which appears when whole.

    What is there is replaced.

    Raises:
        OSError: if the disk is full or not writable; what was there before is untouched.
    """
    state = {"tables": tables.state_dict(), "identity": tables.identity()}
    save_folder(Path(folder), state)


def load_tables(tables: Tables, folder: Path | str) -> None:
    """Load what `save_tables`, or a training run, wrote into tables that were built the same way.

    Backend, device and number of processes may be others.

    Args:
        tables: overwritten.
        folder: that of `save_tables`, or one checkpoint of a run.

    Raises:
        FileNotFoundError: if there is no such folder.
        OtherTablesError: if it was written by other tables (names, sizes, order of features, hash
            seeds, ...), naming the differences.
        ValueError: if it is damaged, or has a newer format.
    """
    state = _state(Path(folder))
    check_identity(state.get("identity"), tables.identity(), owner=f"checkpoint {folder}")
    try:
        tables.load_state_dict(state["tables"])
    except RuntimeError as error:
        raise ValueError(f"checkpoint {folder} does not fit these tables: {error}") from error


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """Return the rows of each physical table by its name, plain tensors (num_rows, width).

    Uncompressed tables have one physical table each, of their own name. How ids become rows of the
    others is in their plan, which `load_tables` checks.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is damaged, has a newer format, or holds no tables.
    """
    return {
        name.removeprefix(_ROWS).removesuffix(_WEIGHT): tensor
        for name, tensor in _state(Path(folder))["tables"].items()
        if name.startswith(_ROWS) and name.endswith(_WEIGHT)
    }


def _state(folder: Path) -> dict[str, Any]:
    state = read_folder(folder)
    if not isinstance(state.get("tables"), dict):
        raise ValueError(f"checkpoint {folder} holds no tables, only {sorted(state)}")
    return state
