"""What a table is, before anyone decides how to store it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

Pooling = Literal["sum", "mean", "none"]

ANY_ID = 2**63 - 1
"""The `num_embeddings` of a table that takes any int64, such as the hash of a string."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table of `num_embeddings` rows of `embedding_dim` values that one or more features read.

    Attributes:
        name: unique name of the table.
        num_embeddings: number of rows; ids are in `[0, num_embeddings)`. ANY_ID where there is no
            vocabulary: ids are then any int64, negative ones too, and only methods that hash can
            store the table.
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
        names: object = self.feature_names
        if isinstance(names, str):
            raise ValueError(
                f"table '{self.name}': feature_names are several, ({self.feature_names!r},) for one"
            )
        for field in ("num_embeddings", "embedding_dim"):
            if not isinstance(getattr(self, field), Integral):
                raise ValueError(
                    f"table '{self.name}': {field} must be a whole number, "
                    f"got {getattr(self, field)!r}"
                )
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
    def num_ids(self) -> int | None:
        """Return the number of ids, None where it has no bound."""
        return None if self.num_embeddings == ANY_ID else self.num_embeddings

    @property
    def full_bytes(self) -> int:
        """Return the bytes of the uncompressed float32 table; 0 where it takes any id."""
        return 0 if self.num_ids is None else 4 * self.num_embeddings * self.embedding_dim


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


def refuse_any_id(specs: Sequence[TableSpec], owner: str) -> None:
    """Check that every table has a number of ids.

    Raises:
        ValueError: if one takes any id.
    """
    if unbounded := [spec.name for spec in specs if spec.num_ids is None]:
        raise ValueError(
            f"{owner}: tables {unbounded} take any id, but this method holds something for every "
            "id; choose one that hashes, such as unified or hash"
        )
