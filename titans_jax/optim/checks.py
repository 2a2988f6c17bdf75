"""Checks of options: each raises ValueError with one line."""

from typing import Any


def require(field: str, value: Any, right: str, holds: bool) -> None:
    """Raise ValueError unless `holds`. right: the valid values, in words."""
    if not holds:
        raise ValueError(f"{field} is {value}, it must be {right}")
