"""Checks of options: each raises ValueError with one line."""

import difflib
from collections.abc import Collection
from typing import Any


def known(field: str, value: Any, table: Collection[Any]) -> None:
    """Raise ValueError unless the value is in the table; the message has the closest name or all names."""
    if value not in table:
        names = [str(name) for name in table]
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known are " + ", ".join(names)
        raise ValueError(f"{field} {value!r} is unknown; {hint}")


def require(field: str, value: Any, right: str, holds: bool) -> None:
    """Raise ValueError unless `holds`. right: the valid values, in words."""
    if not holds:
        raise ValueError(f"{field} is {value}, it must be {right}")
