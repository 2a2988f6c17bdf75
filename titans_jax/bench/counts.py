"""What a model or a program needs, counted before anything is compiled: parameters, bytes, FLOPs, steps in sequence.

`chunk_flops` counts the least matrix products of a chunked memory from its shapes, in the notation of
`titans_jax.memory.types`. |W| is the sum of in x out over the memory's matrices, |W_1| that of those that read the key
itself. A product of [m, k] and [k, n] counts 2 m k n. One token, one head, forward:

    keys       2 |W|                     the network on the key, at the chunk's anchor
    delta      2 (|W| - |W_1|)           its cotangents; none is needed for the key
    reads      2 |W| s                   the query through each of the s parts of W_t: the dual, each trace, the origin
    scores     2 b (in + out)            of each matrix: how the query's input meets the chunk's inputs [b, b], and what
                                         their deltas then add
    carry      2 |W| (1 + traces)        the chunk's rank-one gradients into the dual and each trace

The gradient of a product is two products of its size, so forward and backward are three times the forward. What the
backward pass computes again to save memory is not counted. Scores count whole, including their upper half.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from titans_jax import metrics
from titans_jax.loss import cross_entropy
from titans_jax.memory import Rule
from titans_jax.nn import ModelConfig
from titans_jax.nn.attention import KV
from titans_jax.training.step import define

LONG = 16
"""Training sequences in the row whose FLOPs are counted, so that a memory's unfilled last chunk weighs little."""


def parameters(model: ModelConfig) -> int:
    """Numbers that are trained."""
    return metrics.count(_params(model))


def state_bytes(model: ModelConfig, *, caches: bool = True) -> int:
    """Bytes that one sequence carries from token to token. caches: attention's keys and values included."""
    definition = define(model)
    state = jax.eval_shape(lambda params: definition.model(params).init_state(1), _params(model))
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, KV) and not caches)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if not isinstance(leaf, KV))


def flops_per_token(model: ModelConfig, sequence: int) -> float:
    """FLOPs of the matrix products of the loss and its gradient, a token of a training sequence of this length.

    Of two branches the dearer counts. Counted in a row of LONG sequences; with full attention in one, since its cost
    grows with the row.
    """
    return _flops(jax.grad, model, sequence)


def least_flops_per_token(model: ModelConfig, sequence: int) -> float:
    """`flops_per_token` without what the backward pass computes again: three times the products of the loss."""
    return 3 * _flops(lambda loss: loss, model, sequence)


def _flops(of: Callable[[Callable[..., Any]], Callable[..., Any]], model: ModelConfig, sequence: int) -> float:
    """FLOPs a token of `of(loss)`."""
    tokens = sequence if model.grows else LONG * sequence
    definition = define(model)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        lm = definition.model(params)
        logits, _, _ = lm(tokens, lm.init_state(1), aligned=True)
        return cross_entropy(logits, tokens, jnp.ones(tokens.shape))[0]

    row = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    return matmul_flops(jax.make_jaxpr(of(loss))(_params(model), row).jaxpr) / tokens


def _params(model: ModelConfig) -> Any:
    return jax.eval_shape(define(model).init, jax.random.key(0))


def chunk_flops(rule: Rule, chunk: int) -> float | None:
    """FLOPs of one token in one head, forward; None for a rule that this count does not describe.

    >>> from titans_jax.memory import presets
    >>> W, first = 2 * 64 * 256, 64 * 256
    >>> chunk_flops(presets.titans(64), 64) == 2 * W + 2 * (W - first) + 2 * W * 2 + 2 * 64 * 2 * (64 + 256) + 2 * W * 2
    True
    """
    learner, network, retention = rule.learner, rule.architecture, rule.retention
    plain = (
        learner.grad_at == "chunk_start"
        and learner.orthogonalise is None
        and network.write is None
        and retention.identity
    )
    if not plain or learner.window > 1 or learner.writes_per_token > 1:
        return None
    shapes = {name: w.shape for name, w in jax.eval_shape(network.init, jax.random.key(0)).items()}
    size = sum(math.prod(shape) for shape in shapes.values())
    first = sum(math.prod(shapes[name]) for name, axis in network.channels.items() if axis == "in")
    parts = 1 + learner.traces + retention.to_origin
    scores = 2 * chunk * sum(sum(shape) for shape in shapes.values())
    return float(2 * size + 2 * (size - first) + 2 * size * parts + scores + 2 * size * (1 + learner.traces))


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
