"""A state as plain JSON and named tensors, and back.

Lists and dictionaries whose keys are words stand for themselves. What JSON does not know is an
object with one key that begins with a dollar sign: `$tensor` (the name of one), `$tuple`, `$items`
(a dictionary with other keys, as pairs) and `$float` (one that is not finite). Nothing else exists,
so nothing in a state can name a class, let alone call one.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recemb.tables.tensor_chunks import TensorChunks

Leaf = Tensor | TensorChunks


def split(state: Mapping[str, Any]) -> tuple[Any, dict[str, Leaf]]:
    """Return the plain JSON of a state, and its tensors by their paths in it.

    Raises:
        TypeError: if it holds something that is neither a tensor nor a plain value.
    """
    tensors: dict[str, Leaf] = {}
    return _plain(dict(state), "", tensors), tensors


def join(plain: Any, tensors: Mapping[str, Any]) -> Any:
    """Return the state that `split` took apart.

    Raises:
        ValueError: if `plain` is not what `split` returns, or names a tensor that is not there.
    """
    if isinstance(plain, list):
        return [join(entry, tensors) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    tags = [key for key in plain if key.startswith("$")]
    if not tags:
        return {key: join(value, tensors) for key, value in plain.items()}
    if len(plain) != 1:
        raise ValueError(f"a value with {tags[0]} has other keys beside it")
    (tag, content) = next(iter(plain.items()))
    if tag == "$float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if tag == "$tuple" and isinstance(content, list):
        return tuple(join(entry, tensors) for entry in content)
    if tag == "$items" and isinstance(content, list):
        return dict(_pair(entry, tensors) for entry in content)
    if tag == "$tensor" and isinstance(content, str) and content in tensors:
        return tensors[content]
    raise ValueError(f"a value {tag} {str(content)[:50]!r} means nothing")


def leaves(state: Any) -> dict[str, Leaf]:
    """Return the tensors of a state by their paths in it."""
    return split(state)[1]


def _plain(value: Any, path: str, tensors: dict[str, Leaf]) -> Any:
    if isinstance(value, Tensor | TensorChunks):
        name = path
        while name in tensors:
            # Keys with dots in them can spell the path of another tensor.
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        entries = [(key, _plain(its, _join(path, key), tensors)) for key, its in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in entries):
            return dict(entries)
        return {"$items": [[_plain(key, path, tensors), its] for key, its in entries]}
    if isinstance(value, list | tuple):
        parts = [_plain(its, _join(path, place), tensors) for place, its in enumerate(value)]
        return parts if isinstance(value, list) else {"$tuple": parts}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"checkpoint: '{path}' is a {type(value).__module__}.{type(value).__qualname__}; a "
        "checkpoint holds tensors, numbers, strings, None, lists, tuples and dictionaries of "
        "these; convert it in state_dict()"
    )


def _pair(entry: Any, tensors: Mapping[str, Any]) -> tuple[Any, Any]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise ValueError("an entry of $items is no pair")
    key, value = (join(part, tensors) for part in entry)
    if isinstance(key, list | dict | torch.Tensor):
        raise ValueError("a key of $items is no plain value")
    return key, value


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
