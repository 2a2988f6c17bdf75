"""Attention against a softmax over explicit keys, token by token, in float64."""

from typing import Any

import numpy as np
import pytest

from tests.nn.members import config_of, jit, layer_of
from titans_jax.nn.attention import KV, Attention, Projections
from titans_jax.nn.blocks import no_values

T, SLOTS = 21, 8


def call(layer: Attention, x: np.ndarray, state: KV | None = None, age: np.ndarray | None = None) -> tuple[Any, KV]:
    state = layer.init_state(len(x)) if state is None else state
    age = np.arange(x.shape[1])[None].repeat(len(x), 0) if age is None else age
    return jit(lambda x, state, age: layer(x, state, age, None)[:2])(x, state, age)


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """Rotate the pairs (x_i, x_{i + D/2}) of [H, D] by position x 10000^(-2i / D), as complex numbers."""
    half = x.shape[-1] // 2
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * position * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def oracle(layer: Attention, x: np.ndarray, kind: str, starts: list[int]) -> np.ndarray:
    """y [T, E] of x [T, E]; documents start at `starts`."""
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
def test_attention_is_a_softmax_over_the_visible_tokens(kind, positions, persistent):
    config = config_of(
        {"block": "transformer", "positions": positions}, attention=kind, persistent=persistent, context=32
    )
    layer, x = layer_of(Attention, config), np.random.default_rng(1).normal(size=(2, T, config.dim)).astype(np.float32)
    age = np.stack([np.arange(T), np.r_[np.arange(11), np.arange(T - 11)]])  # the second row's new document
    whole, _ = call(layer, x, age=age)
    first, state = call(layer, x[:, :5], age=age[:, :5])
    rest, _ = call(layer, x[:, 5:], state, age[:, 5:])
    for row, starts in enumerate(([0], [0, 11])):
        want = oracle(layer, np.float64(x[row]), kind, starts)
        np.testing.assert_allclose(whole[row], want, atol=2e-6)
        np.testing.assert_allclose(np.concatenate([first, rest], 1)[row], want, atol=2e-6)


@pytest.mark.parametrize("persistent", [0, 3])
def test_aligned_segments_give_the_same_outputs_and_cache_as_any_call(persistent):
    config = config_of({"block": "transformer"}, attention="segmented", persistent=persistent)
    layer = layer_of(Attention, config)
    x = np.random.default_rng(5).normal(size=(1, 5 * SLOTS, config.dim)).astype(np.float32)
    age = np.r_[np.arange(3 * SLOTS + 2), np.arange(2 * SLOTS - 2)][None]  # a new document inside the fourth segment
    _, state = call(layer, x[:, : 2 * SLOTS], age=age[:, : 2 * SLOTS])
    rest = x[:, 2 * SLOTS :], state, age[:, 2 * SLOTS :]
    y, after = jit(lambda x, state, age: layer(x, state, age, None, aligned=True)[:2])(*rest)
    want = oracle(layer, np.float64(x[0]), "segmented", [0, 3 * SLOTS + 2])[2 * SLOTS :]
    np.testing.assert_allclose(y[0], want, atol=2e-6)
    for own, other in zip(after, call(layer, *rest)[1], strict=True):
        np.testing.assert_array_equal(own, other)


def test_value_residual_mixes_in_the_first_layers_values():
    p = layer_of(Projections, config_of({"block": "transformer", "residual": "value"}))
    x, y = np.random.default_rng(2).normal(size=(2, 1, 4, p.config.dim)).astype(np.float32)
    _, _, v1, values = p.qkv(x, no_values(p.config, 1, 4))
    _, _, v2, values = p.qkv(y, values)
    np.testing.assert_allclose(v1, p.split(p.value(x)), atol=2e-6)
    share = 1 / (1 + np.exp(-np.float64(p.mix[...])))[:, None]
    np.testing.assert_allclose(v2, (1 - share) * p.split(p.value(y)) + share * v1, atol=2e-6)
    np.testing.assert_array_equal(values.first, v1)


def test_full_attention_refuses_long_calls_and_is_nan_after_its_context():
    config = config_of({"block": "transformer"}, attention="full", context=8)
    layer, x = layer_of(Attention, config), np.ones((1, 9, config.dim), np.float32)
    with pytest.raises(ValueError, match=r"model.context = 8 tokens, the call has 9"):
        call(layer, x)
    y, state = call(layer, x[:, :6])
    late, _ = call(layer, x[:, :3], state)
    assert np.isfinite(y).all() and np.isfinite(late[:, :2]).all() and np.isnan(late[:, 2]).all()


def test_local_attention_is_as_exact_after_a_billion_tokens():
    config = config_of({"block": "transformer"}, attention="sliding")
    layer, x = layer_of(Attention, config), np.random.default_rng(3).normal(size=(1, 20, config.dim)).astype(np.float32)
    _, state = call(layer, x[:, :10])
    age = 10 + np.arange(10)[None]
    early, _ = call(layer, x[:, 10:], state, age)
    late, _ = call(layer, x[:, 10:], state._replace(step=state.step + 2**30), age + 2**30)
    np.testing.assert_array_equal(late, early)
