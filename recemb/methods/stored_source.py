"""Rows in a form that trained tables are turned into: nothing of it is drawn or trained."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from recemb.tables.row_source import RowSource

if TYPE_CHECKING:
    from dataclasses import Field


class StoredForm(Protocol):
    """A dataclass that says what is stored."""

    __dataclass_fields__: "ClassVar[dict[str, Field[Any]]]"

    def parts(self) -> dict[str, int]:
        """Return the bytes of each part."""
        ...


FormT = TypeVar("FormT", bound=StoredForm)


class StoredSource(RowSource, Generic[FormT]):
    """Rows that are stored as `stored` says, in buffers; it serves and is not trained.

    A subclass's constructor takes the fields of its form, and registers the buffers.

    Args:
        stored: the form.
    """

    def __init__(self, stored: FormT) -> None:
        super().__init__()
        self.stored: FormT = stored

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        return asdict(self.stored)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw nothing: the form is made of tables that were trained."""

    def train_bytes(self) -> dict[str, int]:
        """Return the bytes of each part, as the form counts them."""
        return self.stored.parts()

    def filled(self, **tensors: Tensor) -> Self:
        """Return this source, in eval mode, with `tensors` as the values of its buffers."""
        for name, tensor in tensors.items():
            self.get_buffer(name).copy_(tensor)
        return self.eval()
