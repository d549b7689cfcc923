"""What a data set's columns are, after preparation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """A column of ids in `[0, num_embeddings)`.

    Attributes:
        name: the feature's name.
        num_embeddings: number of distinct ids, the out-of-vocabulary id included.
        is_multi_hot: whether an example holds any number of ids; otherwise exactly one.
        is_weighted: whether each id carries a float32 weight; only with `is_multi_hot`.

    Raises:
        ValueError: if `num_embeddings` is below 1, or a one-hot feature is weighted.
    """

    name: str
    num_embeddings: int
    is_multi_hot: bool = False
    is_weighted: bool = False

    def __post_init__(self) -> None:
        if self.num_embeddings < 1:
            raise ValueError(
                f"feature '{self.name}': num_embeddings must be at least 1, "
                f"got {self.num_embeddings}"
            )
        if self.is_weighted and not self.is_multi_hot:
            raise ValueError(f"feature '{self.name}': is_weighted needs is_multi_hot=True")


@dataclass(frozen=True, kw_only=True)
class History:
    """A column of what a user did before an example: ids in order of time, the oldest first.

    All histories of an example have one length. They are stored once for each user; an example says
    where its own begins and ends.

    Attributes:
        name: the feature's name.
        of: the one-hot column whose ids, and whose table, it shares.
        is_position: whether the ids say how long ago something was: 1 for the most recent
            behaviour, 2 for the one before. They are counted, not stored.
    """

    name: str
    of: str
    is_position: bool = False


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns of a prepared data set, in the order in which batches hold them.

    Attributes:
        dense: names of the float32 columns.
        categorical: the id columns.
        label: name of the 0/1 column.
        group: name of the int64 column that GAUC groups by, or None.
        histories: columns of earlier behaviours; after the categorical ones in batches.

    Raises:
        ValueError: if two columns share a name, there is no column at all, or a history is of a
            column that is not there or not one-hot.
    """

    dense: tuple[str, ...]
    categorical: tuple[Categorical, ...]
    label: str
    group: str | None = None
    histories: tuple[History, ...] = ()

    def __post_init__(self) -> None:
        names = [
            *self.dense,
            *(c.name for c in self.categorical),
            *(h.name for h in self.histories),
        ]
        if not names:
            raise ValueError("schema: there is neither a dense nor a categorical column")
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"schema: columns {repeated} appear twice; rename one of each")
        one_hot = [c.name for c in self.categorical if not c.is_multi_hot]
        for history in self.histories:
            if history.of not in one_hot:
                raise ValueError(
                    f"history '{history.name}': it is of '{history.of}', but the one-hot columns "
                    f"are {one_hot}; name one of these"
                )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Return the names of the categorical features, in order, then those of the histories."""
        return (*(c.name for c in self.categorical), *(h.name for h in self.histories))

    def column(self, feature: str) -> Categorical:
        """Return the column of a feature; of a history, the one whose ids it shares.

        Raises:
            ValueError: if there is no such feature.
        """
        shared = {h.name: h.of for h in self.histories}
        for column in self.categorical:
            if column.name == shared.get(feature, feature):
                return column
        raise ValueError(
            f"schema: there is no feature '{feature}'; there are {list(self.feature_names)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the schema that `to_dict` wrote."""
        return cls(
            dense=tuple(state["dense"]),
            categorical=tuple(Categorical(**c) for c in state["categorical"]),
            label=state["label"],
            group=state["group"],
            histories=tuple(History(**h) for h in state.get("histories", ())),
        )
