"""What a behaviour consists of, and which tables its parts are read from.

A part is one kind of id: item, category, position. Vectors have two roles: attention vectors give
the scores, representation vectors what is summed. Which tables serve them is the sharing:

    none             one table for each role, for histories and targets alike (DARE)
    all              one table for everything (TWIN)
    history_target   one table for each role and side (TWIN-4E)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from recemb.data.schema import History, Schema
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables

Sharing = Literal["none", "all", "history_target"]
Role = Literal["attention", "representation"]
Width = int | Mapping[str, int] | None
"""One width, a width by target column, or None for the experiment's."""

ROLES: tuple[Role, ...] = ("attention", "representation")


@dataclass(frozen=True, kw_only=True)
class RoleKeys:
    """Where a part's vectors of one role are found.

    Attributes:
        history: key of the behaviours' vectors.
        target: key of the target's.
        dim: width of both.
    """

    history: str
    target: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of id of a behaviour.

    Attributes:
        history: the feature of the behaviours.
        target: the feature of the target.
        is_time: whether it says when, not what.
        attention: where the vectors of the scores are.
        representation: where the vectors of the sum are.
    """

    history: str
    target: str
    is_time: bool
    attention: RoleKeys
    representation: RoleKeys


def sequence_specs(
    schema: Schema,
    *,
    sharing: Sharing,
    embedding_dim: int,
    attention_dim: Width = None,
    representation_dim: Width = None,
) -> tuple[TableSpec, ...]:
    """Return the tables of the parts, and pooled ones of the features that have no history.

    Args:
        schema: the features.
        sharing: which roles and sides share a table.
        embedding_dim: width where nothing else is said.
        attention_dim: width of attention vectors.
        representation_dim: width of representation vectors; with sharing "all" there is one width.

    Raises:
        ValueError: if there is no history, on an unknown word or column, or on two widths for what
            is shared.
    """
    if sharing not in get_args(Sharing):
        raise ValueError(f"sharing must be one of {get_args(Sharing)}, got '{sharing}'")
    if not schema.histories:
        raise ValueError(
            "the data set has no behaviour histories, which sequence models read; choose one that "
            "has, such as data=movielens_sequences, or a flat model"
        )
    columns = [h.of for h in schema.histories]
    widths = {
        "attention": _widths("attention_dim", attention_dim, columns, embedding_dim),
        "representation": _widths("representation_dim", representation_dim, columns, embedding_dim),
    }
    if sharing == "all" and widths["attention"] != widths["representation"]:
        raise ValueError("sharing 'all' has one table for both roles, so their widths must be one")
    specs = []
    for role in ROLES[:1] if sharing == "all" else ROLES:
        for history in schema.histories:
            sides = (history.of, history.name)
            shares = [(side,) for side in sides] if sharing == "history_target" else [sides]
            for features in shares:
                specs.append(
                    TableSpec(
                        name=features[0] if sharing == "all" else f"{features[0]}.{role}",
                        num_embeddings=schema.column(history.of).num_embeddings,
                        embedding_dim=widths[role][history.of],
                        feature_names=features,
                        pooling="none",
                    )
                )
    others = [c for c in schema.categorical if c.name not in columns]
    return (
        *specs,
        *(
            TableSpec(
                name=c.name,
                num_embeddings=c.num_embeddings,
                embedding_dim=embedding_dim,
                feature_names=(c.name,),
            )
            for c in others
        ),
    )


def without_time(schema: Schema) -> Schema:
    """Return the schema without histories that say when, and without the columns they are of."""
    times = {h.of for h in schema.histories if h.is_position}
    return replace(
        schema,
        categorical=tuple(c for c in schema.categorical if c.name not in times),
        histories=tuple(h for h in schema.histories if h.of not in times),
    )


def parts_of(schema: Schema, tables: Tables) -> tuple[Part, ...]:
    """Return the parts, given the tables that were made for `sequence_specs`."""
    return tuple(
        Part(
            history=history.name,
            target=history.of,
            is_time=history.is_position,
            attention=_keys(history, tables, "attention"),
            representation=_keys(history, tables, "representation"),
        )
        for history in schema.histories
    )


def _keys(history: History, tables: Tables, role: Role) -> RoleKeys:
    found = {}
    for side in (history.name, history.of):
        keys = [
            key
            for key in tables.sequence_keys
            if tables.outputs[key][1] == side
            and tables.outputs[key][0].name
            in (history.of, f"{history.of}.{role}", f"{side}.{role}")
        ]
        assert len(keys) == 1, (side, role, tables.sequence_keys)
        found[side] = keys[0]
    return RoleKeys(
        history=found[history.name],
        target=found[history.of],
        dim=tables.sequence_dims[found[history.of]],
    )


def _widths(owner: str, given: Width, columns: list[str], embedding_dim: int) -> dict[str, int]:
    if given is None:
        return dict.fromkeys(columns, embedding_dim)
    if isinstance(given, int):
        return dict.fromkeys(columns, given)
    if not isinstance(given, Mapping):
        raise ValueError(f"{owner} must be a width, or one for each of {columns}, got '{given}'")
    if unknown := sorted(given.keys() - set(columns)):
        raise ValueError(f"{owner}: there is no history of {unknown}, only of {columns}")
    return {column: given.get(column, embedding_dim) for column in columns}


def part_named(parts: Sequence[Part], column: str, owner: str) -> Part:
    """Return the part whose target is `column`.

    Raises:
        ValueError: if there is none.
    """
    for part in parts:
        if part.target == column:
            return part
    raise ValueError(f"{owner}: there is no column '{column}', only {[p.target for p in parts]}")
