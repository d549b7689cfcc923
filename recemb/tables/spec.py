"""What a table is, before anyone decides how to store it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Pooling = Literal["sum", "mean", "none"]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table of `num_embeddings` rows of `embedding_dim` values that one or more features read.

    Attributes:
        name: unique name of the table.
        num_embeddings: number of rows; ids are in `[0, num_embeddings)`.
        embedding_dim: values in a row.
        feature_names: the features that look up here.
        pooling: how the rows of a bag become one vector; "none" for sequences.

    Raises:
        ValueError: on a size below 1, no feature, or an unknown pooling.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: tuple[str, ...]
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        for field in ("num_embeddings", "embedding_dim"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"table '{self.name}': {field} must be at least 1, got {getattr(self, field)}"
                )
        if not self.feature_names:
            raise ValueError(f"table '{self.name}': feature_names is empty; name one feature")
        if self.pooling not in ("sum", "mean", "none"):
            raise ValueError(
                f"table '{self.name}': pooling must be sum, mean or none, got '{self.pooling}'"
            )

    @property
    def full_bytes(self) -> int:
        """Return the bytes of the uncompressed float32 table."""
        return 4 * self.num_embeddings * self.embedding_dim


def output_keys(specs: Sequence[TableSpec]) -> dict[str, tuple[TableSpec, str]]:
    """Return each output key, in configured order, with its table and its feature.

    The key is the feature's name, or `feature@table` where several tables serve the feature
    (TorchRec's convention).

    Raises:
        ValueError: if two tables share a name, or a table names a feature twice.
    """
    names = Counter(s.name for s in specs)
    if twice := [n for n, count in names.items() if count > 1]:
        raise ValueError(f"tables {twice} are named twice; rename one of each")
    uses = Counter(f for s in specs for f in s.feature_names)
    keys: dict[str, tuple[TableSpec, str]] = {}
    for spec in specs:
        for feature in spec.feature_names:
            key = feature if uses[feature] == 1 else f"{feature}@{spec.name}"
            if key in keys:
                raise ValueError(f"table '{spec.name}': feature '{feature}' is named twice")
            keys[key] = (spec, feature)
    return keys
