"""Tensors under the names that a plan gives them, whatever characters these have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class NamedTensors(nn.Module):
    """A mapping from names to tensors that moves, and trains, with the module that owns it.

    It is no part of the state_dict: the owner names the tensors.

    Args:
        tensors: by name.
        device: where they go.
        is_trained: whether they are parameters, or buffers.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], device: torch.device, *, is_trained: bool = False
    ) -> None:
        super().__init__()
        self._names = {name: f"tensor_{index}" for index, name in enumerate(tensors)}
        self._is_trained = is_trained
        for name, tensor in tensors.items():
            self._register(name, tensor.to(device))

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, self._names[name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors."""
        return ((name, self[name]) for name in self._names)

    def share(self, other: "NamedTensors") -> None:
        """Use the tensors of `other`, which has the same names, without gradients."""
        self._is_trained = False
        for name, tensor in other.items():
            delattr(self, self._names[name])
            self._register(name, tensor.detach())

    def _register(self, name: str, tensor: Tensor) -> None:
        if self._is_trained:
            self.register_parameter(self._names[name], nn.Parameter(tensor))
        else:
            self.register_buffer(self._names[name], tensor, persistent=False)

    def _save_to_state_dict(self, *args: object) -> None:
        """Save nothing: the owner names the tensors."""

    def _load_from_state_dict(self, *args: object) -> None:
        """Load nothing: the owner names the tensors."""


def load_named(
    named: Iterable[tuple[str, Tensor]],
    state_dict: Mapping[str, Any],
    prefix: str,
    missing_keys: list[str],
    error_msgs: list[str],
) -> set[str]:
    """Copy tensors out of a state_dict; return the keys that belong to them.

    Args:
        named: the targets, by the names that they have in the state_dict behind `prefix`.
        state_dict: where they are.
        prefix: of the owner's names.
        missing_keys: extended by the keys that are not there.
        error_msgs: extended by what does not fit.
    """
    keys = set()
    for name, target in named:
        key = prefix + name
        keys.add(key)
        if key not in state_dict:
            missing_keys.append(key)
        elif state_dict[key].shape != target.shape:
            error_msgs.append(
                f"{key}: the tables need {tuple(target.shape)}, but the state has "
                f"{tuple(state_dict[key].shape)}"
            )
        else:
            target.detach().copy_(state_dict[key])
    return keys
