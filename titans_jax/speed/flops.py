"""The least matrix products that a chunked memory needs, counted from its shapes.

Notation of `titans_jax.memory.base`; |W| is the sum of in x out over the memory's matrices, |W_1| that of those that
read the key itself. A product of [m, k] and [k, n] counts 2 m k n. A token, in one head, forward:

    keys       2 |W|                     the network on the key, at the chunk's anchor
    delta      2 (|W| - |W_1|)           its cotangents; none is needed for the key
    reads      2 |W| s                   the query through every source that W_t is made of: the dual, each trace, home
    scores     2 b (in + out)            of each matrix: how the query's input meets the chunk's inputs [b, b], and what
                                         their deltas then add
    carry      2 |W| (1 + traces)        the chunk's rank-one gradients into the dual and each trace

A product's gradient is two products of its size, so forward and backward are three times the forward; what is computed
again in the backward pass, to be held in less memory, is not counted, and neither is what is no matrix product. Scores
count whole, their upper half too, which a product of blocks cannot leave out.
"""

import math

import jax

from titans_jax.memory import Rule


def forward(rule: Rule, chunk: int) -> float | None:
    """FLOPs of one token in one head, forward; None for a rule that this count does not describe.

    >>> from titans_jax.memory import presets
    >>> W, first = 2 * 64 * 256, 64 * 256
    >>> forward(presets.titans(64), 64) == 2 * W + 2 * (W - first) + 2 * W * 2 + 2 * 64 * 2 * (64 + 256) + 2 * W * 2
    True
    """
    learner, network, retention = rule.learner, rule.architecture, rule.retention
    plain = learner.gradient == "anchor" and learner.size is None and network.write is None and retention.identity
    if not plain or learner.window > 1 or learner.writes > 1:
        return None
    shapes = {name: w.shape for name, w in jax.eval_shape(network.init, jax.random.key(0)).items()}
    whole = sum(math.prod(shape) for shape in shapes.values())
    first = sum(math.prod(shapes[name]) for name, axis in network.channels.items() if axis == "in")
    sources = 1 + learner.traces + retention.home
    scores = 2 * chunk * sum(sum(shape) for shape in shapes.values())
    return float(2 * whole + 2 * (whole - first) + 2 * whole * sources + scores + 2 * whole * (1 + learner.traces))
