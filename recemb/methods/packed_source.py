"""Rows that are computed from parameters of fewer bits, for serving.

The parameters of a source (cores, matrices, codebooks, a flat array) are cut into blocks of 64
values, each stored as a row of `recemb.tables.row_codes`, or are float16. They are decoded whole
for every batch, which reads most of them. A block has a scale and a bias: int8 takes 72 bytes
instead of 256, int4 36, int2 20.

Shapes: `N` ids, `D` embedding_dim.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from recemb.methods.source_class import source_class
from recemb.tables.row_codes import (
    RowCodes,
    code_bytes,
    decode_rows,
    encode_rows,
    header_dtype,
    to_half,
)
from recemb.tables.row_source import RowSource

BLOCK = 64
"""Values that share a scale and a bias."""

_INTEGERS = ("quantised", "packed")


class PackedSource(RowSource):
    """A row source whose large parameters have fewer bits; it serves and is not trained.

    Args:
        source: the form of the source.
        options: its settings.
        bits: of a parameter: 16 for float16, or 8, 4 or 2.
        device: where the tensors live.

    Raises:
        ValueError: if the form is not known, or has no parameters to pack.
    """

    form: ClassVar[str] = "packed"

    def __init__(
        self,
        *,
        source: str,
        options: Mapping[str, Any],
        bits: Literal[16, 8, 4, 2],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        kind = source_class(source)
        if kind.packable is None:
            raise ValueError(f"PackedSource: rows of the form '{source}' have nothing to pack")
        self.source, self.options, self.bits = source, dict(options), bits
        inner = kind(**self.options, device=device)
        self._shapes: dict[str, torch.Size] = {}
        for name, tensor in list(inner.parts()):
            if re.fullmatch(kind.packable, name) and _is_smaller(tensor.numel(), bits):
                self._shapes[name] = tensor.shape
                _empty(inner, name)
                for part, (shape, dtype) in _stored(tensor.numel(), bits).items():
                    made = torch.empty(shape, dtype=dtype, device=device)
                    self.register_buffer(f"{name}_{part}", made)
        self._inner = inner.requires_grad_(False)

    @staticmethod
    @torch.no_grad()
    def of(source: RowSource, bits: Literal[16, 8, 4, 2]) -> "PackedSource":
        """Return the same source in fewer bits, on the same device.

        Raises:
            ValueError: if it has nothing to pack, or a value is too large.
        """
        tensors = dict(source.parts())
        made = PackedSource(
            source=source.form,
            options=source.settings(),
            bits=bits,
            device=next(iter(tensors.values())).device,
        )
        for name, tensor in made._inner.parts():
            if name not in made._shapes:
                tensor.detach().copy_(tensors[name])
        for name in made._shapes:
            for part, tensor in _packed(tensors[name].detach(), bits).items():
                made.get_buffer(f"{name}_{part}").copy_(tensor)
        made.refresh()
        return made.eval()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        return {"source": self.source, "options": self.options, "bits": self.bits}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw nothing: the form is made of a source that was trained."""

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and the tensors that are saved: the packed ones and all others."""
        yield from self.named_buffers(recurse=False)
        yield from ((name, t) for name, t in self._inner.parts() if name not in self._shapes)

    def refresh(self) -> None:
        """Derive again, after a load, what follows from saved buffers."""
        self._inner.refresh()

    def frozen(self) -> Self:
        """Return this source: it is the serving form."""
        return self.eval()

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,) int64 of a table."""
        decoded = {name: self.decoded(name) for name in self._shapes}
        rows: Tensor = functional_call(self._inner, decoded, (table, ids))
        return rows

    def decoded(self, name: str) -> Tensor:
        """Return the values of a parameter, float32, in its shape."""
        shape = self._shapes[name]
        if self.bits == 16:
            return self.get_buffer(f"{name}_half").float().view(shape)
        names = ("codes", "scale", "bias")
        blocks = RowCodes(*(self.get_buffer(f"{name}_{part}") for part in names))
        return decode_rows(blocks, BLOCK, self.bits).view(-1)[: shape.numel()].view(shape)


def packed(source: RowSource, name: str, bits: Literal[16, 8, 4, 2]) -> RowSource:
    """Return a source in fewer bits; the same one if it consists of integers already.

    Args:
        source: frozen.
        name: names it in errors.
        bits: of a parameter.

    Raises:
        ValueError: if its rows are neither computed from parameters nor integers.
    """
    if source.form in _INTEGERS:
        return source
    if source.packable is None:
        raise ValueError(
            f"rows '{name}': the form '{source.form}' has no values that can be quantised after "
            "training; set post=none"
        )
    try:
        return PackedSource.of(source, bits)
    except ValueError as error:
        raise ValueError(f"rows '{name}' cannot have {bits} bits: {error}") from error


def _stored(size: int, bits: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and type of what holds `size` values."""
    if bits == 16:
        return {"half": ((size,), torch.float16)}
    num_blocks = -(-size // BLOCK)
    header = ((num_blocks,), header_dtype(bits))
    codes = ((num_blocks, code_bytes(BLOCK, bits)), torch.uint8)
    return {"codes": codes, "scale": header, "bias": header}


def _is_smaller(size: int, bits: int) -> bool:
    parts = _stored(size, bits).values()
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in parts) < 4 * size


def _packed(values: Tensor, bits: Literal[16, 8, 4, 2]) -> dict[str, Tensor]:
    flat = values.reshape(-1)
    if bits == 16:
        return {"half": to_half(flat)}
    # The last block is filled up with a value of its own, which leaves its range as it is.
    filled = torch.cat([flat, flat[-1:].expand(-flat.numel() % BLOCK)])
    blocks = encode_rows(filled.view(-1, BLOCK), bits)
    return {"codes": blocks.codes, "scale": blocks.scale, "bias": blocks.bias}


def _empty(source: RowSource, name: str) -> None:
    """Leave a parameter or buffer of a source without values."""
    nothing = torch.empty(0)
    if name in dict(source.named_parameters(recurse=False)):
        source.register_parameter(name, nn.Parameter(nothing, requires_grad=False))
    else:
        source.register_buffer(name, nothing)
