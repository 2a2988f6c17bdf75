"""LMM, MAL, MAG and the transformer against their equations in numpy; attention and memory are the library's."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.nn.members import config_of, jit, layer_of
from titans_jax.nn.blocks import LMM, MAG, MAL, Activations, Gating, Transformer

T = 21
Array = NDArray[np.float64]
Part = Callable[[Array], Array]


def rms(x: Array, norm: object) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * np.float64(norm.scale[...])


def gated(combine: Gating, y: Array, m: Array) -> Array:
    return rms(m, combine.value) / (1 + np.exp(-rms(y, combine.gate)))


def lmm(block: LMM, x: Array, attend: Part, remember: Part) -> Array:
    return x + remember(rms(x, block.norm))


def mal(block: MAL, x: Array, attend: Part, remember: Part) -> Array:  # Eq 30-31
    y = x + remember(rms(x, block.norm))
    return y + attend(rms(y, block.attention_norm))


def mag(block: MAG, x: Array, attend: Part, remember: Part) -> Array:  # Eq 27-28
    given = rms(x, block.norm)
    y = x + attend(given)
    return y + gated(block.gating, y, remember(given))


def transformer(block: Transformer, x: Array, attend: Part, remember: Part) -> Array:
    return x + attend(rms(x, block.norm))


@pytest.mark.parametrize(
    ("name", "make", "equation"),
    [("lmm", LMM, lmm), ("mal", MAL, mal), ("mag", MAG, mag), ("transformer", Transformer, transformer)],
)
def test_a_block_equals_its_equations(name, make, equation):
    block = layer_of(make, config_of({"block": name, "positions": "rope", "attention": "full", "persistent": 3}))
    x = np.random.default_rng(1).normal(size=(1, T, block.config.dim)).astype(np.float32)
    age = jnp.arange(T)[None]
    attend = jit(lambda x: block.attention(x, block.attention.init_state(1), age, None)[0])
    remember = jit(lambda x: block.memory(x, block.memory.init_state(1), age)[0])
    parts = (lambda x, part=part: np.float64(part(jnp.float32(x)[None])[0]) for part in (attend, remember))
    mixed = jit(lambda x: block.mix(Activations(x, age, None, None, None), block.init_state(1))[0].x)(x)
    want = equation(block, np.float64(x[0]), *parts)
    np.testing.assert_allclose(mixed[0], want, atol=2e-5)
    assert np.abs(want - x[0]).max() > 0.1
