"""Models by name and plain settings: what a file may say about a model."""

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import recemb.models
from recemb.data.schema import Schema
from recemb.models.click_model import ClickModel
from recemb.tables.tables import Tables

_PACKAGE = "recemb.models"
_NAME = re.compile(r"((?:[a-z_][a-z0-9_]*\.)+)([A-Za-z_]\w*)")


def model_name(kind: type[ClickModel]) -> str:
    """Return the name, `<file>.<class>`, of a model of `recemb.models`.

    Raises:
        ValueError: if it is none.
    """
    if not kind.__module__.startswith(f"{_PACKAGE}."):
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} is no model of {_PACKAGE}, and a file names "
            f"models of that package alone; put yours there to export it"
        )
    return f"{kind.__module__.removeprefix(f'{_PACKAGE}.')}.{kind.__qualname__}"


def model_class(name: str) -> type[ClickModel]:
    """Return the model of that name. Imports nothing but files of `recemb.models`.

    Raises:
        ValueError: if there is none.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        module, kind = match[1].removesuffix("."), match[2]
        root = Path(recemb.models.__path__[0])
        if root.joinpath(*module.split(".")).with_suffix(".py").is_file():
            found = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), kind, None)
            is_model = isinstance(found, type) and issubclass(found, ClickModel)
            if is_model and found.__module__ == f"{_PACKAGE}.{module}":
                return cast("type[ClickModel]", found)
    raise ValueError(f"there is no model {name!r} in {_PACKAGE}; a newer recemb may have it")


def plain_settings(owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that are plain values.

    These are numbers, strings, truth values, None, lists of them, and numbers by name.

    Raises:
        ValueError: naming the first that is not.
    """
    return {str(key): _plain(f"{owner}: setting '{key}'", v) for key, v in settings.items()}


def make_model(
    name: str, settings: Mapping[str, Any], *, schema: Schema, tables: Tables
) -> ClickModel:
    """Return an untrained model for these features and tables.

    Raises:
        ValueError: if there is no such model, or it has no such settings.
    """
    kind = model_class(name)
    given = plain_settings(f"model {name}", settings)
    known = set(inspect.signature(kind.__init__).parameters) - {"self", *kind.given}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"model {name} has no settings {unknown}, only {sorted(known)}")
    return kind.for_tables(schema, tables, given)


def _plain(owner: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(owner, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(v, int | float) for v in value.values()):
        return {str(k): v for k, v in value.items()}
    raise ValueError(
        f"{owner} is {type(value).__name__}; only numbers, strings, truth values, lists of them "
        "and numbers by name can be exported"
    )
