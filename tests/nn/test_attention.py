"""Attention against a softmax over explicit keys, one token at a time, in float64."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import config_of, somewhere
from titans_jax.nn.attention import Attention
from titans_jax.nn.config import ModelConfig

T, SLOTS = 21, 8


def layer_of(config: ModelConfig) -> Attention:
    graphdef, params = nnx.split(Attention(config, rngs=nnx.Rngs(0)))
    return nnx.merge(graphdef, somewhere(params))


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """[H, D] with the pairs (x_i, x_{i + D/2}) as complex numbers turned by position x 10000^(-2i / D)."""
    half = x.shape[-1] // 2
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * position * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def oracle(layer: Attention, x: np.ndarray, kind: str, starts: list[int]) -> np.ndarray:
    """y [T, E] of x [T, E]; documents begin at `starts`."""
    p, c = layer.projections, layer.config
    query, key, value, out = (np.float64(part.kernel[...]) for part in (p.query, p.key, p.value, p.out))
    heads = lambda x, kernel: (x @ kernel).reshape(len(x), c.heads, c.head_dim)
    q, k, v = (heads(x, kernel) for kernel in (query, key, value))
    front = np.zeros((0, c.dim)) if p.persistent is None else np.float64(p.persistent[...])
    rotate = turned if c.positions == "rope" else lambda x, position: x
    ys = []
    for t in range(len(x)):
        first = {"full": 0, "sliding": t - SLOTS + 1, "segmented": t - t % SLOTS}[kind]
        seen = range(max(first, *[s for s in starts if s <= t]), t + 1)
        keys = [*heads(front, key), *(rotate(k[j], j) for j in seen)]
        values = [*heads(front, value), *(v[j] for j in seen)]
        # persistent tokens have no position: they meet the query as it was before it was turned
        queries = [q[t]] * len(front) + [rotate(q[t], t) for _ in seen]
        scores = np.array([(a * b).sum(-1) for a, b in zip(queries, keys, strict=True)]) * c.head_dim**-0.5
        ys.append(np.einsum("sh,shd->hd", softmax(scores.T).T, np.array(values)).reshape(-1) @ out)
    return np.array(ys)


@pytest.mark.parametrize("positions, persistent", [("rope", 3), ("none", 0)])
@pytest.mark.parametrize("kind", ["full", "sliding", "segmented"])
def test_attention_is_a_softmax_over_what_its_kind_sees(kind, positions, persistent):
    config = config_of(
        {"block": "transformer", "positions": positions}, attention=kind, persistent=persistent, context=32
    )
    layer, x = layer_of(config), np.random.default_rng(1).normal(size=(2, T, config.dim)).astype(np.float32)
    age = np.stack([np.arange(T), np.r_[np.arange(11), np.arange(T - 11)]])  # the second row's new document
    whole, _, _ = layer(x, layer.init_state(2), age, None)
    first, state, _ = layer(x[:, :5], layer.init_state(2), age[:, :5], None)
    rest, _, _ = layer(x[:, 5:], state, age[:, 5:], None)
    for row, starts in enumerate(([0], [0, 11])):
        want = oracle(layer, np.float64(x[row]), kind, starts)
        np.testing.assert_allclose(whole[row], want, atol=2e-6)
        np.testing.assert_allclose(np.concatenate([first, rest], 1)[row], want, atol=2e-6)


def test_value_residual_mixes_the_first_layers_values_in():
    layer = layer_of(config_of({"block": "transformer", "residual": "value"}, heads=3))
    p = layer.projections
    x, y = np.random.default_rng(2).normal(size=(2, 1, 4, layer.config.dim)).astype(np.float32)
    from titans_jax.nn.blocks import no_values

    _, _, v1, values = p.qkv(x, no_values(layer.config, 1, 4))
    _, _, v2, values = p.qkv(y, values)
    np.testing.assert_allclose(v1, p.split(p.value(x)), atol=1e-6)
    share = 1 / (1 + np.exp(-p.mix[...]))[:, None]
    np.testing.assert_allclose(v2, (1 - share) * p.split(p.value(y)) + share * v1, atol=1e-6)
    np.testing.assert_array_equal(values.first, v1)


def test_full_attention_says_when_it_cannot_hold_a_call_and_is_nan_past_its_context():
    config = config_of({"block": "transformer"}, attention="full", context=8)
    layer, x = layer_of(config), np.ones((1, 9, config.dim), np.float32)
    with pytest.raises(ValueError, match=r"model.context = 8 tokens, the call has 9"):
        layer(x, layer.init_state(1), np.arange(9)[None], None)
    y, state, _ = layer(x[:, :6], layer.init_state(1), np.arange(6)[None], None)
    late, _, _ = layer(x[:, :3], state, 6 + np.arange(3)[None], None)
    assert np.isfinite(y).all() and np.isfinite(late[:, :2]).all() and np.isnan(late[:, 2]).all()


def test_local_attention_is_exact_however_long_the_stream_is():
    config = config_of({"block": "transformer"}, attention="sliding")
    layer, x = layer_of(config), np.random.default_rng(3).normal(size=(1, 20, config.dim)).astype(np.float32)
    _, state, _ = layer(x[:, :10], layer.init_state(1), np.arange(10)[None], None)
    early, _, _ = layer(x[:, 10:], state, 10 + np.arange(10)[None], None)
    far = state._replace(step=state.step + 2**30)
    late, _, _ = layer(x[:, 10:], far, 2**30 + 10 + np.arange(10)[None], None)
    np.testing.assert_array_equal(jax.device_get(late), jax.device_get(early))
