"""What a traced function holds."""

from collections.abc import Iterator
from typing import Any

from titans_jax.training.counts import jaxprs_of


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of scan, cond, checkpoint, jit and custom gradients included, however deep."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_of(equation.params):
            yield from equations(inner)
