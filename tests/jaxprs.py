"""What a traced function holds."""

from collections.abc import Iterator
from typing import Any


def inner_jaxprs(jaxpr: Any) -> Iterator[Any]:
    """Every jaxpr inside a jaxpr's equations: scan, cond, checkpoint, jit, custom gradients."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            yield from _within(value)


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _within(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
