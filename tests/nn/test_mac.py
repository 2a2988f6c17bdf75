"""MAC against its equations (top of titans_jax/nn/mac.py), as a loop over tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.members import SEGMENT, config_of, jit, layer_of
from tests.nn.test_attention import softmax, turned
from tests.nn.test_blocks import gated, rms
from titans_jax.nn.blocks import Activations
from titans_jax.nn.mac import MAC

T = 2 * SEGMENT + 5


def oracle(block: MAC, x: np.ndarray) -> np.ndarray:
    """o [T, E] of x [T, E]: the library's memory, token by token; the rest is numpy."""
    p, c = block.projections, block.config
    query, key, value, out = (np.float64(part.kernel[...]) for part in (p.query, p.key, p.value, p.out))
    heads = lambda x, kernel: (np.float64(x) @ kernel).reshape(c.heads, c.head_dim)
    front = np.float64(p.persistent[...])
    memory = jit(lambda: block.memory.init_state(1))()
    read = jit(lambda x, state: block.retrieve(block.retrieve.query(x), state, block.memory))
    write = jit(lambda y, memory, age: block.memory(block.memory_norm(y), memory, age)[:2])
    outputs, stream = [], x
    x = rms(np.float64(x), block.norm)
    for t in range(len(x)):
        at = t % SEGMENT
        if at == 0:
            snapshot, keys, values = memory.memory, [], []
        now = jnp.float32(x[None, t : t + 1])
        h = np.asarray(read(now, snapshot))[0, 0]  # Eq 21: of the memory as the segment found it
        for token in (h, x[t]):  # both at the token's place in the segment
            keys.append((at, heads(token, key)))
            values.append(heads(token, value))
        q = heads(x[t], query)
        scores = [(q * heads(token, key)).sum(-1) for token in front]
        scores += [(turned(q, at) * turned(k, place)).sum(-1) for place, k in keys]
        weights = softmax(np.array(scores).T * c.head_dim**-0.5)  # Eq 22-23: h_j and S_j for j <= t
        everything = np.array([heads(token, value) for token in front] + values)
        y = np.einsum("hs,shd->hd", weights, everything).reshape(-1) @ out + stream[t]
        m, memory = write(jnp.float32(y)[None, None], memory, np.array([[t]]))  # Eq 24, then Eq 25's read
        outputs.append(y + gated(block.gating, y, np.float64(m)[0, 0]))
    return np.array(outputs)


@pytest.mark.parametrize("chunk", [pytest.param(SEGMENT, marks=pytest.mark.slow), SEGMENT // 2])
def test_mac_equals_its_equations_token_by_token(chunk):
    config = config_of({"block": "mac", "positions": "rope", "chunk": chunk, "persistent": 3})
    block = layer_of(MAC, config)
    x = np.random.default_rng(1).normal(size=(1, T, config.dim)).astype(np.float32)
    stream = lambda x: Activations(x, jnp.arange(T)[None], None, None, None, aligned=T % SEGMENT == 0)
    mixed = jit(lambda x: block.mix(stream(x), block.init_state(1))[0].x)(x)
    want = oracle(block, x[0])
    np.testing.assert_allclose(mixed[0], want, atol=2e-5)
    assert np.abs(want - x[0]).max() > 0.1
