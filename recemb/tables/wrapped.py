"""The state of tables within tables: it is named as if it were the outer ones' own."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

_PLANNED = "planned."

StateHook = Callable[[nn.Module, dict[str, Any], str, Any], None]


def name_as_own(tables: nn.Module) -> None:
    """Have the state_dict of `tables` name what is in `tables.planned` as its own."""
    # torch gives this method no types.
    register: Callable[[StateHook], object] = tables.register_state_dict_post_hook
    register(_drop_prefix)


def hand_on(state_dict: dict[str, Any], prefix: str, keys: Iterable[str]) -> None:
    """Rename `keys` of a state_dict for `planned`, which torch loads after its owner.

    Args:
        state_dict: changed in place.
        prefix: of the owner's names.
        keys: those, prefix included, that the owner does not keep.
    """
    for key in keys:
        state_dict[prefix + _PLANNED + key.removeprefix(prefix)] = state_dict.pop(key)


def _drop_prefix(
    tables: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    for key in [k for k in state_dict if k.startswith(prefix + _PLANNED)]:
        state_dict[prefix + key.removeprefix(prefix + _PLANNED)] = state_dict.pop(key)
