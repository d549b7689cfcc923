"""Tensors under the names that a plan gives them, whatever characters these have."""

from collections.abc import Iterator, Mapping

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
