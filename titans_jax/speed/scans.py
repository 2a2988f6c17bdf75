"""How long a program's longest chain of loop steps is: what cannot be done at once, however wide the machine."""

from typing import Any

from jax.extend.core import Literal

from titans_jax.training.bench.match import jaxprs_of


def longest(jaxpr: Any) -> int:
    """Steps of scans on the longest path from an input to an output.

    A scan counts its length times the chain inside one step, at least one; scans that follow one another add up, those
    that do not depend on each other do not; of a cond's branches the longest counts. A while loop counts once, since a
    jaxpr does not say how often it runs.

    >>> import jax, jax.numpy as jnp
    >>> def f(x):
    ...     step = lambda carry, x: (carry + x, carry)
    ...     total, each = jax.lax.scan(step, 0.0, x)  # 12 steps
    ...     aside, _ = jax.lax.scan(step, 0.0, x)     # 12 beside them
    ...     return jax.lax.scan(step, total, each)[0] + aside  # and 12 after
    >>> longest(jax.make_jaxpr(f)(jnp.ones(12)).jaxpr)
    24
    """
    depth: dict[Any, int] = {}

    def reached(variables: Any) -> int:
        return max((depth.get(x, 0) for x in variables if not isinstance(x, Literal)), default=0)

    for equation in jaxpr.eqns:
        inner = [longest(getattr(sub, "jaxpr", sub)) for sub in jaxprs_of(equation.params)]
        steps = max(inner, default=0)
        if equation.primitive.name == "scan":
            steps = equation.params["length"] * max(1, steps)
        elif equation.primitive.name == "while":
            steps = max(1, steps)
        after = reached(equation.invars) + steps
        depth |= dict.fromkeys(equation.outvars, after)
    return reached(jaxpr.outvars)
