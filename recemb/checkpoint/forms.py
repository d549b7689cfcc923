"""The closed set of forms in which tables are served: plain JSON and tensors, and back.

- "plan": rows that a `LookupPlan` looks up.
- "computed": rows that `RowSource`s compute, each of a form named in its class, beside a plan for
  the tables that are stored.
- "joined": several of these, side by side.

Nothing is made from a description but the classes of this package, with plain settings, and no
tensor is allocated whose shape the file does not hold.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from recemb.methods.source_class import source_class
from recemb.tables.bounds import Bounds
from recemb.tables.computed import ComputedTables
from recemb.tables.joined import JoinedTables
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import RowSource
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables

_META = torch.device("meta")


def describe_tables(frozen: Tables) -> dict[str, Any]:
    """Return the form of frozen tables and all that it takes, with their tensors, to make them.

    Raises:
        ValueError: if they have no serving form.
    """
    specs = [asdict(spec) for spec in frozen.specs]
    if isinstance(frozen, PlannedTables):
        return {"form": "plan", "specs": specs, "plan": json.loads(frozen.plan.to_json())}
    if isinstance(frozen, ComputedTables):
        described = frozen.description()
        plan = None if described["plan"] is None else json.loads(described["plan"])
        return {"form": "computed", "specs": specs, **described, "plan": plan}
    if isinstance(frozen, JoinedTables):
        parts = {name: describe_tables(frozen.part(name)) for name in frozen.parts}
        return {"form": "joined", "specs": specs, "parts": parts}
    raise ValueError(
        f"{type(frozen).__name__} has no serving form, only {list(_FORMS)}; let its freeze() "
        "return PlannedTables or ComputedTables, or add a form to recemb/checkpoint/forms.py"
    )


def make_tables(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], bounds: Bounds
) -> Tables:
    """Return the tables that `describe_tables` described, in eval mode, without gradients.

    Args:
        description: what it returned.
        tensors: the state_dict of the frozen tables.
        bounds: what happens to an id outside [0, num_embeddings).

    Raises:
        ValueError: if the form is unknown, or description and tensors do not fit each other.
    """
    form = description.get("form")
    if not isinstance(form, str) or form not in _FORMS:
        raise ValueError(
            f"tables: form {form!r} is not known, only {list(_FORMS)}; a newer version of recemb "
            "may know it"
        )
    try:
        specs = [
            TableSpec(**{**entry, "feature_names": tuple(entry["feature_names"])})
            for entry in description["specs"]
        ]
        return _FORMS[form](description, specs, tensors, bounds)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"tables: form '{form}' is not described in full ({error!r})") from error


def _planned(
    description: Mapping[str, Any],
    specs: Sequence[TableSpec],
    tensors: Mapping[str, Tensor],
    bounds: Bounds,
) -> PlannedTables:
    plan = LookupPlan.from_json(json.dumps(description["plan"]))
    wanted = {
        f"embedding_bags.{t.name}.weight": ((t.num_rows, t.width), getattr(torch, t.dtype))
        for t in plan.tables
    }
    wanted |= {
        f"projections.{p.name}": ((p.in_width, p.out_width), torch.float32)
        for p in plan.projections
    }
    buffers = {
        name.removeprefix("buffers."): tensor
        for name, tensor in tensors.items()
        if name.startswith("buffers.")
    }
    _check_tensors(wanted, tensors, extra={f"buffers.{name}" for name in buffers})
    initial = {t.name: tensors[f"embedding_bags.{t.name}.weight"] for t in plan.tables}
    initial |= {f"{p.name}.projection": tensors[f"projections.{p.name}"] for p in plan.projections}
    tables = PlannedTables(
        specs, plan, bounds=bounds, buffers=buffers, initial=initial, device="cpu"
    )
    return tables.without_training()


def _computed(
    description: Mapping[str, Any],
    specs: Sequence[TableSpec],
    tensors: Mapping[str, Tensor],
    bounds: Bounds,
) -> ComputedTables:
    rest = dict(tensors)
    sources = {}
    for name, entry in description["sources"].items():
        parts = {
            key.removeprefix(f"embedding_bags.{name}."): rest.pop(key)
            for key in list(rest)
            if key.startswith(f"embedding_bags.{name}.") and _is_part(key, name)
        }
        sources[name] = _source(name, entry, parts)
    stored = [spec for spec in specs if spec.name not in description["source_of"]]
    planned = None
    if description["plan"] is not None:
        planned = _planned({"plan": description["plan"]}, stored, rest, bounds)
    elif rest:
        raise ValueError(f"tables: nothing reads the tensors {sorted(rest)[:3]}")
    return ComputedTables(
        specs,
        sources=sources,
        source_of=description["source_of"],
        planned=planned,
        bounds=bounds,
    ).freeze()


def _joined(
    description: Mapping[str, Any],
    specs: Sequence[TableSpec],
    tensors: Mapping[str, Tensor],
    bounds: Bounds,
) -> JoinedTables:
    parts, rest = {}, dict(tensors)
    for name, entry in description["parts"].items():
        prefix = f"parts.{name}."
        its = {key: rest.pop(key) for key in list(rest) if key.startswith(prefix)}
        parts[str(name)] = make_tables(
            entry, {key.removeprefix(prefix): tensor for key, tensor in its.items()}, bounds
        )
    _check_tensors({}, rest)
    return JoinedTables(specs, parts).eval()


def _is_part(key: str, source: str) -> bool:
    """Return whether a tensor is a source's: names of tables may have dots, parts have none."""
    return "." not in key.removeprefix(f"embedding_bags.{source}.")


def _source(name: str, entry: Mapping[str, Any], parts: Mapping[str, Tensor]) -> RowSource:
    """Return a source with the tensors `parts`."""
    kind = source_class(entry["form"])
    empty = kind(**entry["settings"], device=_META)
    wanted = {part: (tuple(t.shape), t.dtype) for part, t in empty.parts()}
    _check_tensors(wanted, parts)
    source = kind(**entry["settings"], device=torch.device("cpu"))
    for part, tensor in source.parts():
        tensor.detach().copy_(parts[part])
    source.refresh()
    return source


def _check_tensors(
    wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Mapping[str, Tensor],
    *,
    extra: set[str] | None = None,
) -> None:
    """Check that `tensors` are those that are wanted, by name, shape and type.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, (shape, dtype) in wanted.items():
        found = tensors.get(name)
        if found is None:
            raise ValueError(f"tables: the tensor '{name}' is missing")
        if tuple(found.shape) != shape or found.dtype != dtype:
            raise ValueError(
                f"tables: the tensor '{name}' is {tuple(found.shape)} {found.dtype}, but its "
                f"description says {shape} {dtype}"
            )
    if unknown := sorted(tensors.keys() - wanted.keys() - (extra or set())):
        raise ValueError(f"tables: nothing reads the tensors {unknown[:3]}")


_Make = Callable[
    [Mapping[str, Any], Sequence[TableSpec], Mapping[str, Tensor], Bounds],
    Tables,
]
_FORMS: Mapping[str, _Make] = {
    "plan": _planned,
    "computed": _computed,
    "joined": _joined,
}
