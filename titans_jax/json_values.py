"""JSON values read as the types that a dataclass declares, and compared."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from titans_jax.nearest import did_you_mean


def parse(hint: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the type `hint`, which may be a dataclass.

    Raises ValueError for a value of another type, named `where`.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        for key in value:
            if key not in hints:
                raise ValueError(
                    f"{where}.{key} is not a field of {typing.cast(type, hint).__name__}{did_you_mean(key, hints)}"
                )
        return typing.cast(Any, hint)(**{key: parse(hints[key], v, f"{where}.{key}") for key, v in value.items()})
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(ValueError):
                return parse(option, value, where)
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, list):
        element = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(element) == len(value):
            return tuple(parse(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(element, value, strict=True)))
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Any or type(value) is hint:
        return value
    raise ValueError(f"{where} is {value!r}, not {getattr(hint, '__name__', hint)}")


def changes(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves that differ between two JSON values, as (path, old, new).

    >>> list(changes({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}))
    [('a.b', 1, 3)]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new
