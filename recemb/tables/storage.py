"""The bytes that tables occupy, part by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Exact bytes of tables, equal to the tensors that exist and to the file that holds them.

    Attributes:
        full_bytes: what the same tables would take uncompressed in float32.
        serve: bytes of each part that serving needs (weights, codes, codebooks, scales, ...).
        train: bytes of each part that training holds: those of `serve`, as training keeps them,
            and the optimizer state.
    """

    full_bytes: int
    serve: Mapping[str, int]
    train: Mapping[str, int]

    @property
    def serve_bytes(self) -> int:
        """Return the bytes that serving needs."""
        return sum(self.serve.values())

    @property
    def train_bytes(self) -> int:
        """Return the bytes that training holds between steps; gradients are not among them."""
        return sum(self.train.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: `full`, and the bytes of each part under `serve` and `train`."""
        return {"full": self.full_bytes, "serve": dict(self.serve), "train": dict(self.train)}
