"""What a model or a program needs, counted before anything is compiled, and what devices can do."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from titans_jax import metrics
from titans_jax.loss import cross_entropy
from titans_jax.nn import ModelConfig
from titans_jax.nn.attention import KV
from titans_jax.training.step import define

LONG = 16
"""Training sequences in the row whose FLOPs are counted, so that a memory's unfilled last chunk weighs little."""


class Chip(NamedTuple):
    """What one device can do, by its maker's figures. On v4 and TPU7x, a device is half a chip.

    flops: bfloat16 FLOPs a second. hbm: bytes of memory. links: bytes a second that go out over all links together.
    """

    flops: float
    hbm: float
    links: float


CHIPS = {
    "TPU v4": Chip(137.5e12, 16 * 2**30, 67.5e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 180e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 540e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 360e9),
    "TPU7x": Chip(1153e12, 96 * 2**30, 300e9),
}
"""By jax' name of the device's kind."""


def parameters(model: ModelConfig) -> int:
    """Numbers that are trained."""
    return metrics.count(define(model).shapes)


def state_bytes(model: ModelConfig, *, caches: bool = True) -> int:
    """Bytes that one sequence carries from token to token. caches: attention's keys and values included."""
    definition = define(model)
    state = jax.eval_shape(lambda params: definition.model(params).init_state(1), definition.shapes)
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, KV) and not caches)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if not isinstance(leaf, KV))


def flops_per_token(model: ModelConfig, sequence: int, *, least: bool = False) -> float:
    """FLOPs of the matrix products of the loss and its gradient, a token of a training sequence of this length.

    least: without what the backward pass computes again, three times the products of the loss. Of two branches the
    dearer counts. Counted in a row of LONG sequences; with full attention in one, since its cost grows with the row.
    """
    tokens = sequence if model.grows else LONG * sequence
    definition = define(model)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        lm = definition.model(params)
        logits, _, _ = lm(tokens, lm.init_state(1), aligned=True)
        return cross_entropy(logits, tokens, jnp.ones(tokens.shape))[0]

    row = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    counted = jax.make_jaxpr(loss if least else jax.grad(loss))(definition.shapes, row)
    return (3 if least else 1) * matmul_flops(counted.jaxpr) / tokens


def matmul_flops(jaxpr: Any) -> int:
    """FLOPs of a jaxpr's matrix products: a scan's body as often as it runs, the dearest branch of a cond.

    A product with a side of length one is a sum or a broadcast and is not counted. A while loop's body counts once.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [matmul_flops(getattr(sub, "jaxpr", sub)) for sub in jaxprs_of(equation.params)]
        if equation.primitive.name == "dot_general":
            ((contracted, _), (batch, _)) = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            terms = math.prod(left.shape[axis] for axis in contracted)
            rows = left.size // terms // math.prod(left.shape[axis] for axis in batch)
            columns = out.size * terms // left.size
            total += 2 * terms * out.size * (min(terms, rows, columns) > 1)
        elif equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += equation.params["length"] * sum(inner) if equation.primitive.name == "scan" else sum(inner)
    return total


def scan_depth(jaxpr: Any) -> int:
    """Steps of scans on the longest path from an input to an output: what no machine can do at once.

    A scan counts its length times the depth of its body, which is at least one. Scans that depend on each other add up.
    The deepest branch of a cond counts; a while loop counts once.

    >>> def f(x):
    ...     step = lambda carry, x: (carry + x, carry)
    ...     total, each = jax.lax.scan(step, 0.0, x)  # 12 steps
    ...     aside, _ = jax.lax.scan(step, 0.0, x)     # 12 beside them
    ...     return jax.lax.scan(step, total, each)[0] + aside  # and 12 after
    >>> scan_depth(jax.make_jaxpr(f)(jnp.ones(12)).jaxpr)
    24
    """
    depth: dict[Any, int] = {}

    def reached(variables: Any) -> int:
        return max((depth.get(x, 0) for x in variables if not isinstance(x, Literal)), default=0)

    for equation in jaxpr.eqns:
        steps = max((scan_depth(getattr(sub, "jaxpr", sub)) for sub in jaxprs_of(equation.params)), default=0)
        if equation.primitive.name == "scan":
            steps = equation.params["length"] * max(1, steps)
        elif equation.primitive.name == "while":
            steps = max(1, steps)
        after = reached(equation.invars) + steps
        depth |= dict.fromkeys(equation.outvars, after)
    return reached(jaxpr.outvars)


def jaxprs_of(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]
