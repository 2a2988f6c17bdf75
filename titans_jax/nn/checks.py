"""Checks of a configuration's fields, each of which raises ValueError with one line."""

import numbers
import types
import typing
from typing import Any, Literal

from titans_jax.nearest import require_known

KINDS: dict[Any, type] = {
    int: numbers.Integral,
    float: numbers.Real,
    bool: bool,
    str: str,
    types.NoneType: types.NoneType,
}


def check_types(where: str, config: Any) -> None:
    """Raise ValueError for a field that is not of its type, such as 8.0 where an integer is wanted."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value, kinds = getattr(config, name), typing.get_args(hint) or (hint,)
        if typing.get_origin(hint) is Literal:
            require_known(f"{where}.{name}", value, kinds)
        elif set(kinds) <= KINDS.keys() and not isinstance(value, tuple(KINDS[kind] for kind in kinds)):
            names = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}.{name}: {value!r} is not of type {names}")


def positive(field: str, value: float, most: int = 1 << 24) -> None:
    """Raise ValueError for a number that is not above 0, or is above `most`."""
    if not value > 0:
        raise ValueError(f"{field}: {value}; it must be above 0")
    if value > most:
        raise ValueError(f"{field}: {value}; it must be at most {most:,}")
