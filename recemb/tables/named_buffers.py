"""Tensors that programs read, under their names in the plan."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class NamedBuffers(nn.Module):
    """A mapping from names to tensors that moves with the module that owns it.

    It is no part of the state_dict: the owner names the tensors.

    Args:
        tensors: by name.
        device: where they go.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__()
        self._names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(f"of_{name}", tensor.to(device), persistent=False)

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(f"of_{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors."""
        return ((name, self[name]) for name in self._names)

    def share(self, other: "NamedBuffers") -> None:
        """Use the tensors of `other`, which has the same names, instead of these."""
        for name, tensor in other.items():
            self.register_buffer(f"of_{name}", tensor, persistent=False)
