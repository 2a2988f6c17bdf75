"""The count of least FLOPs: against a chunk written out plainly, whose products XLA counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.bench import memory
from titans_jax.memory import miras, presets
from titans_jax.training.counts import matmul_flops

D, HIDDEN, B = 8, 32, 4
RULE = presets.titans(D)


def least(dim, chunk, hidden):
    """FLOPs of a token in one head, forward: keys, delta, reads of two sources, scores, what is carried."""
    size, first = 2 * dim * hidden, dim * hidden
    return 2 * size + 2 * (size - first) + 2 * size * 2 + 2 * chunk * 2 * (dim + hidden) + 2 * size * 2


def gates_unrolled(gates):
    """c, d and C with A_t = a_t A_0 + c_t S_0 - sum_j C_tj g_j and S_t = m_t S_0 - sum_j E_tj g_j, token by token."""
    a, c, C = [1.0], [0.0], [jnp.zeros(B)]
    m, E = [1.0], [jnp.zeros(B)]
    for t in range(B):
        rate, momentum, keep = (gate[t] for gate in gates[:3])
        m.append(momentum * m[-1])
        E.append(momentum * E[-1] + rate * jnp.eye(B)[t])
        a.append(keep * a[-1])
        c.append(keep * c[-1] + m[-1])
        C.append(keep * C[-1] + E[-1])
    return [jnp.stack(x[1:]) for x in (a, c, C, m, E)]


def chunk_by_hand(weights, trace, q, k, v, gates):
    """One chunk of Titans in the dual form, every product written out: y, the dual and the trace after it."""
    w1, w2 = weights
    s1, s2 = trace
    a, c, C, m, E = gates_unrolled(gates)
    h = k @ w1  # keys: |W_1|
    x, slope = jax.vjp(lambda h: jax.nn.gelu(h, approximate=False), h)
    o = x @ w2  # keys: |W_2|
    delta2 = jax.vjp(norm, o)[1](2 * (k + norm(o) - v))[0]
    delta1 = slope(delta2 @ w2.T)[0]  # delta: |W| - |W_1|

    def read(z, w, s, inputs, delta):  # reads: two sources; scores: in, and out
        return a[:, None] * (z @ w) + c[:, None] * (z @ s) - (C * (z @ inputs.T)) @ delta

    y = q + norm(read(jax.nn.gelu(read(q, w1, s1, k, delta1), approximate=False), w2, s2, x, delta2))
    carried = [  # carry: the dual and the trace
        (a[-1] * w + c[-1] * s - (C[-1][:, None] * i).T @ d, m[-1] * s - (E[-1][:, None] * i).T @ d)
        for w, s, i, d in ((w1, s1, k, delta1), (w2, s2, x, delta2))
    ]
    return y, carried


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


@pytest.fixture(scope="module")
def given():
    tokens = jax.tree.map(lambda x: x[0], memory.tokens(RULE, 1, D, B, B))
    draw = jax.random.normal(jax.random.key(5), (2, D, HIDDEN))
    weights, trace = (draw[0] / D**0.5, draw[1].T / HIDDEN**0.5), (draw[1] / 9, draw[0].T / 9)
    return weights, trace, *tokens


def test_the_chunk_by_hand_is_the_memory(given):
    weights, trace, q, k, v, gates = given
    rule_memory = miras(RULE, chunk=B, implementation="recurrent", clip=None)
    state = rule_memory.init({"w1": weights[0], "w2": weights[1]})
    state = state._replace(traces=({"w1": trace[0], "w2": trace[1]},))
    y, after, _ = jax.jit(rule_memory.update)(state, q, k, v, gates, valid=np.ones(B, bool))
    by_hand, carried = jax.jit(chunk_by_hand)(*given)
    np.testing.assert_allclose(by_hand, y, atol=2e-4)
    np.testing.assert_allclose(carried[0][0], after.dual["w1"], atol=2e-4)
    np.testing.assert_allclose(carried[1][1], after.traces[0]["w2"], atol=2e-4)


def test_the_count_is_what_the_chunk_by_hand_multiplies(given):
    assert least(D, B, HIDDEN) * B == matmul_flops(jax.make_jaxpr(chunk_by_hand)(*given).jaxpr)

    def loss(*given):
        y, carried = chunk_by_hand(*given)
        return y.sum() + sum(x.sum() for pair in carried for x in pair)

    both = jax.make_jaxpr(jax.grad(loss, argnums=tuple(range(6))))(*given)
    # the gradient of the delta is written by jax with no product more or less than twice the forward's
    assert 3 * least(D, B, HIDDEN) * B == matmul_flops(both.jaxpr)


def test_a_memory_that_is_timed_has_the_least_products():
    case = {"rule": "titans", "shape": (2, 64), "length": 1024, "chunk": 64}
    read, trained = (memory._subject(case | {"kind": kind}, alone=False).flops for kind in ("forward", "training"))
    assert read == pytest.approx(2 * least(64, 64, 256), rel=0.001)  # beside them are the products of a chunk's decays
    assert trained == 3 * read
