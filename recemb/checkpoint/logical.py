"""Which tables a checkpoint's rows belong to, and what differs when others would load them."""

import warnings
from collections.abc import Mapping
from typing import Any

_SHOWN = 5
# Where `recemb.tables.joined.JoinedTables` describe their parts, and what others have in its place.
_PARTS, _OTHERS = "joined", ("plan", "sources", "parts")


class OtherTablesError(ValueError):
    """A checkpoint was written by other tables than those that would load it."""


def check_identity(saved: Any, present: Mapping[str, Any], *, owner: str) -> None:
    """Check that a state may be loaded.

    Joined tables once wrote nothing of how their parts find rows. Such a state is taken, with a
    warning.

    Args:
        saved: what was written beside the state; None in a checkpoint that knows nothing of it
            (format 1), which is not checked.
        present: the same of those that would load it, such as `Tables.identity`, plain JSON types.
        owner: names the checkpoint in the error.

    Raises:
        OtherTablesError: naming the differences, the first few of them.
    """
    if saved is None:
        return
    if _PARTS in present and not any(key in saved for key in (_PARTS, *_OTHERS)):
        warnings.warn(
            f"{owner} says nothing of how the parts of its tables find rows, for it was written by "
            "an earlier version; that their settings, hash seeds included, are those of the run "
            "that wrote it is not checked",
            stacklevel=2,
        )
        present = {key: value for key, value in present.items() if key != _PARTS}
    found = differences(saved, present)
    if not found:
        return
    more = len(found) - _SHOWN
    shown = "; ".join(found[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise OtherTablesError(
        f"{owner} was written by other tables: {shown}. Rows would go to other ids; build the "
        "tables as they were then, or start afresh in another folder"
    )


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Return what differs between two values of plain JSON types, with the place of each.

    Entries of lists that have a name, a key or a table are known by it; where two such lists
    differ in names or order, that alone is said.

    >>> differences({"seed": 1, "rows": [2]}, {"seed": 3, "rows": [2]})
    ['seed was 1 and is 3']
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [
            text
            for key in keys
            for text in differences(before.get(key), now.get(key), _join(where, key))
        ]
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        names, others = _names(before), _names(now)
        if names == others and len(before) == len(now):
            return [
                text
                for name, old, new in zip(names, before, now, strict=True)
                for text in differences(old, new, _join(where, name))
            ]
        if len({*names} & {*others}) or len(before) != len(now):
            return [f"{where} were {names} and are {others}"]
    return [] if before == now else [f"{where} was {before} and is {now}"]


def _names(entries: list[Any] | tuple[Any, ...]) -> list[Any]:
    """Return what entries of a list are known by: a name, else themselves or their places."""
    for label in ("name", "key"):
        if entries and all(isinstance(e, Mapping) and label in e for e in entries):
            return [entry[label] for entry in entries]
    if any(isinstance(entry, Mapping | list | tuple) for entry in entries):
        return list(range(len(entries)))
    return list(entries)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
