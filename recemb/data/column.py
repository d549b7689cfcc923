"""How raw columns become features: descriptions only; `recemb.data.encoder` does the work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["string", "int", "float"]
"""How a text column is read; Parquet columns keep their type where "string" is asked for."""

MAX_ROWS_PER_TABLE = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """The column to predict.

    Attributes:
        name: the raw column.
        threshold: values of at least this are positive; None demands values that are 0 or 1.
    """

    name: str
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class DenseColumn:
    """A number that the model gets as a float. A missing one is 0 after the transform.

    Attributes:
        name: of the feature.
        column: the raw column; None is the same name.
        transform: "identity"; "log", sign(x) * log(1 + |x|); or "standardise", to mean 0 and
            deviation 1 over the training split.

    Raises:
        ValueError: on an unknown transform.
    """

    name: str
    column: str | None = None
    transform: Literal["identity", "log", "standardise"] = "identity"

    def __post_init__(self) -> None:
        _check_choice(self.name, "transform", self.transform, ("identity", "log", "standardise"))

    @property
    def raw(self) -> str:
        """Return the raw column's name."""
        return self.column or self.name


@dataclass(frozen=True, kw_only=True)
class CategoricalColumn:
    """A value, or a list of values, that the model gets as ids.

    Attributes:
        name: of the feature.
        column: the raw column; None is the same name.
        encoding: "vocabulary", ids for the values of the training split; "hash", ids from 1 on by
            `recemb.ids.hashing`, salted with the feature's name; "ids", values are ids already.
        num_embeddings: number of ids. Needed for "hash" and "ids"; for "vocabulary" an upper
            limit, by which the rarest values lose their id, or None.
        min_count: a value gets an id from this many training occurrences on; "vocabulary" only.
        kind: how a text column is read; "int" makes 7 and 07 the same value.
        missing: "oov" gives missing values id 0, which rare and unseen values share; "value" treats
            missing as one more value.
        transform: "buckets" puts a number into a bucket first, see `squared_log_buckets`.
        is_multi_hot: whether an example has a list of values: a list column in Parquet, text cut at
            `separator` otherwise. A missing or empty list is an empty bag.
        separator: between the values, and between the weights, of one example in text.
        weights: the raw column of the values' weights, as many per example as values.

    Raises:
        ValueError: on an unknown choice or settings that contradict each other.
    """

    name: str
    column: str | None = None
    encoding: Literal["vocabulary", "hash", "ids"] = "vocabulary"
    num_embeddings: int | None = None
    min_count: int = 1
    kind: Literal["string", "int"] = "string"
    missing: Literal["oov", "value"] = "oov"
    transform: Literal["none", "buckets"] = "none"
    is_multi_hot: bool = False
    separator: str = "|"
    weights: str | None = None

    def __post_init__(self) -> None:
        _check_choice(self.name, "encoding", self.encoding, ("vocabulary", "hash", "ids"))
        _check_choice(self.name, "kind", self.kind, ("string", "int"))
        _check_choice(self.name, "missing", self.missing, ("oov", "value"))
        _check_choice(self.name, "transform", self.transform, ("none", "buckets"))
        if self.num_embeddings is None and self.encoding != "vocabulary":
            raise ValueError(
                f"feature '{self.name}': encoding '{self.encoding}' needs num_embeddings"
            )
        lowest = 2 if self.encoding == "hash" else 1
        if self.num_embeddings is not None and not (
            lowest <= self.num_embeddings <= MAX_ROWS_PER_TABLE
        ):
            raise ValueError(
                f"feature '{self.name}': num_embeddings must be in [{lowest}, "
                f"{MAX_ROWS_PER_TABLE}], got {self.num_embeddings}"
            )
        if self.min_count < 1:
            raise ValueError(
                f"feature '{self.name}': min_count must be at least 1, got {self.min_count}"
            )
        if self.min_count > 1 and self.encoding != "vocabulary":
            raise ValueError(
                f"feature '{self.name}': min_count needs encoding 'vocabulary', "
                f"not '{self.encoding}'"
            )
        if self.is_multi_hot and self.transform != "none":
            raise ValueError(f"feature '{self.name}': a multi-hot feature cannot be put in buckets")
        if self.weights is not None and not self.is_multi_hot:
            raise ValueError(f"feature '{self.name}': weights need is_multi_hot=true")
        if self.is_multi_hot and not self.separator:
            raise ValueError(f"feature '{self.name}': separator must not be empty")

    @property
    def raw(self) -> str:
        """Return the raw column's name."""
        return self.column or self.name

    @property
    def raw_kind(self) -> Kind:
        """Return how the raw column is read from text."""
        if self.is_multi_hot:
            return "string"
        if self.transform == "buckets":
            return "float"
        return "int" if self.encoding == "ids" else self.kind


@dataclass(frozen=True, kw_only=True)
class Columns:
    """All columns of a data set.

    Attributes:
        label: what to predict.
        dense: the dense features, in order.
        categorical: the categorical features, in order.
        group: the raw column that GAUC groups by (a user), or None.
    """

    label: LabelColumn
    dense: tuple[DenseColumn, ...] = ()
    categorical: tuple[CategoricalColumn, ...] = ()
    group: str | None = None

    def kinds(self) -> dict[str, Kind]:
        """Return how each raw column is read from text.

        Raises:
            ValueError: if two features read one raw column in different ways.
        """
        kinds: dict[str, Kind] = {}
        wanted: list[tuple[str, Kind, str]] = [(self.label.name, "float", "the label")]
        wanted += [(d.raw, "float", f"feature '{d.name}'") for d in self.dense]
        for c in self.categorical:
            wanted.append((c.raw, c.raw_kind, f"feature '{c.name}'"))
            if c.weights is not None:
                wanted.append((c.weights, "string", f"the weights of '{c.name}'"))
        for raw, kind, user in wanted:
            if kinds.setdefault(raw, kind) != kind:
                raise ValueError(
                    f"column '{raw}': {user} reads it as {kind}, another feature as {kinds[raw]}; "
                    "give both the same kind"
                )
        if self.group is not None:
            kinds.setdefault(self.group, "string")
        return kinds

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Columns":
        """Return the columns that `to_dict` wrote."""
        return cls(
            label=LabelColumn(**state["label"]),
            dense=tuple(DenseColumn(**d) for d in state["dense"]),
            categorical=tuple(CategoricalColumn(**c) for c in state["categorical"]),
            group=state["group"],
        )


def _check_choice(name: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"feature '{name}': {field} must be one of {choices}, got '{value}'")
