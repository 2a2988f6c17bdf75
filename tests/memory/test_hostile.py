"""Law 10: streams that destroy a memory without its clip leave it finite, and so does one token that is not a number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws import RULES
from tests.memory.situations import QUICK
from titans_jax.memory import PRESETS, Gates, Info, State, miras

DIM, CHUNK = 4, 16
SETTINGS = [(momentum, rate) for momentum in (0.0, 0.5, 0.9, 0.99) for rate in (0.05, 0.3, 1.0)]


def streams(tokens: int, seed: int = 0) -> np.ndarray:
    """[3 streams, 3 of q, k, v, tokens, DIM]: one token repeated, keys in one plane, bursts of 99.0 in noise."""
    rng = np.random.default_rng(seed)
    repeats = np.repeat(rng.normal(size=(3, tokens // 512, DIM)), 512, axis=1)
    plane = rng.normal(size=(3, tokens, 2)) @ rng.normal(size=(2, DIM))
    bursts = rng.normal(size=(3, tokens, DIM))
    bursts[:, (np.arange(tokens) % 300) < 20] = 99.0
    return np.stack([repeats, plane, bursts]).astype("float32")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def read(name: str, qkv: np.ndarray, clip: float | None = 1.0, keep: float = 0.999) -> tuple[Any, State, Info]:
    """Every stream under every setting of momentum and rate: y, state, info, with axes [stream, setting] first."""
    rule = RULES[name]
    memory = miras(rule, chunk=CHUNK, clip=clip)
    state = memory.init(rule.architecture.init(jax.random.key(0)))

    def one(stream: Any, setting: Any) -> Any:
        q, k, v = stream
        momentum, rate = (jnp.full(q.shape[0], x) for x in setting)
        return memory.update(state, q, k, v, Gates(rate, momentum, jnp.full_like(rate, keep)))

    run = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return jax.device_get(jax.jit(run, compiler_options=QUICK)(qkv, np.asarray(SETTINGS, "float32")))


def finite(*trees: Any) -> np.ndarray:
    """[stream, setting]"""
    leaves = [np.isfinite(x).reshape(*x.shape[:2], -1).all(-1) for x in jax.tree.leaves(trees)]
    return np.all(leaves, axis=0)


@pytest.mark.parametrize("name", PRESETS)
def test_hostile_streams_stay_finite(name: str) -> None:
    """With the unit keys that the memory layer makes, and with raw ones."""
    raw = streams(2048)
    normal = raw.copy()
    normal[:, :2] = unit(raw[:, :2])
    y, state, _ = read(name, np.concatenate([normal, raw]))
    assert finite(state, y).all(), finite(state, y)


def test_without_the_clip_they_do_not() -> None:
    _, state, info = read("titans_linear", streams(2048), clip=None)
    assert not finite(state)[0].all()
    _, _, info = read("titans_linear", streams(2048))
    assert (info.clipped == 1).any()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("poison", ["qkv", "v"])
def test_one_token_that_is_not_a_number_loses_its_chunk_and_no_more(name: str, poison: str) -> None:
    """The chunk of token 70 is undone, and the rest is as if the memory had not read it."""
    qkv = streams(512)[2:, :, :96]
    qkv = np.concatenate([qkv, unit(qkv)])
    bad = qkv.copy()
    bad[:, 0 if poison == "qkv" else 2 :, 70] = np.nan
    y, state, info = read(name, bad)
    assert finite(y[:, :, :64], y[:, :, 80:], state).all()
    assert (info.clipped[:, :, 79] == 1).all(), "and it is counted"
    without = np.delete(qkv, np.arange(64, 80), axis=2)
    y0, state0, _ = read(name, without)
    np.testing.assert_array_equal(y[:, :, :64], y0[:, :, :64])
    if not state.learner or name.startswith("ttt"):  # momentum that the chunk began with is lost with it
        np.testing.assert_array_equal(y[:, :, 80:], y0[:, :, 64:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["titans", "titans_linear", "gated_deltanet", "ttt_mlp"])
def test_hostile_streams_of_300_000_tokens_stay_finite(name: str) -> None:
    raw = streams(300_032)
    raw[:, :2] = unit(raw[:, :2])
    y, state, _ = read(name, raw)
    assert finite(state, y).all(), finite(state, y)
