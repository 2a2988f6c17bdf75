"""Law 10: streams that destroy a memory without its clip leave it finite, and so does a token that is not a number."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import FAST, RULES, SAME
from tests.memory.situations import with_writes
from titans_jax.memory import PRESETS, Gates, Info, State, miras

DIM, CHUNK, TOKENS = 4, 16, 2048
SETTINGS = [(momentum, rate) for momentum in (0.0, 0.5, 0.9, 0.99) for rate in (0.05, 0.3, 1.0)]
POISONED = slice(64, 80)  # the chunk of token 70
MANY = QUICK | {"xla_backend_optimization_level": 2}  # for so many tokens that running takes longer than compiling

NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRESETS if name not in SAME]


def streams(tokens: int) -> np.ndarray:
    """[3 streams, 3 of q, k, v, tokens, DIM]: one token repeated, keys in one plane, bursts of 99.0 in noise."""
    rng = np.random.default_rng(0)
    repeats = np.repeat(rng.normal(size=(3, tokens // 512, DIM)), 512, axis=1)
    plane = rng.normal(size=(3, tokens, 2)) @ rng.normal(size=(2, DIM))
    bursts = rng.normal(size=(3, tokens, DIM))
    bursts[:, np.arange(tokens) % 300 >= 280] = 99.0
    return np.stack([repeats, plane, bursts]).astype("float32")


def with_unit_keys(qkv: np.ndarray) -> np.ndarray:
    """As the memory layer makes them: q and k of length 1, v as it is."""
    length = np.linalg.norm(qkv, axis=-1, keepdims=True)
    return np.concatenate([(qkv / length)[:, :2], qkv[:, 2:]], axis=1)


def read(
    name: str, qkv: np.ndarray, quiet: np.ndarray, clip: float | None, options: dict[str, Any] = QUICK
) -> tuple[Any, State, Info]:
    """Every stream under every setting of momentum and rate; the first axes of all results are [stream, setting].

    Where `quiet` [streams, tokens] a token neither writes nor forgets.
    """
    rule = RULES[name]
    memory = miras(rule, chunk=CHUNK, clip=clip)
    state = memory.init(rule.architecture.init(jax.random.key(0)))

    def one(stream: Any, quiet: Any, setting: Any) -> Any:
        momentum, rate = (jnp.full(quiet.shape, x) for x in setting)
        rate = jnp.where(quiet, 0, rate)
        if rule.learner.writes_per_token > 1:
            rate = jnp.repeat(rate[:, None], rule.learner.writes_per_token, 1)
        return memory.update(state, *stream, Gates(rate, momentum, jnp.where(quiet, 1, 0.999)))

    run = jax.jit(jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None)), compiler_options=options)
    q, k, v = qkv.swapaxes(0, 1)
    stream = q, with_writes(rule, k), with_writes(rule, v)
    return jax.device_get(run(stream, quiet, np.asarray(SETTINGS, "float32")))


@functools.cache
def results(name: str) -> tuple[Any, State, Info]:
    """Streams 0-2 with unit keys, 3-5 raw; then noise: with a token all NaN, with its value NaN, its chunk quiet."""
    raw = streams(TOKENS)
    noise = with_unit_keys(np.stack([raw[2]] * 3))
    noise[0, :, 70] = np.nan
    noise[1, 2, 70] = np.nan
    quiet = np.zeros((9, TOKENS), bool)
    quiet[8, POISONED] = True
    return read(name, np.concatenate([with_unit_keys(raw), raw, noise]), quiet, 1.0)


def finite(*trees: Any) -> np.ndarray:
    """[stream, setting]: whether all of it is."""
    return np.all([np.isfinite(x).reshape(*x.shape[:2], -1).all(-1) for x in jax.tree.leaves(trees)], axis=0)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_streams_leave_the_memory_finite(name: str) -> None:
    y, state, _ = results(name)
    assert finite(state).all(), finite(state)
    assert finite(y[:3]).all(), "with the unit keys of the memory layer every answer is finite too"
    if RULES[name].learner.grad_at == "chunk_start":
        assert finite(y[3:6]).all(), "fresh gradients at raw keys grow as (rate k k)^chunk, these do not"


def test_without_the_clip_they_do_not() -> None:
    qkv = with_unit_keys(streams(TOKENS))
    _, state, _ = read("titans_linear", qkv, np.zeros((3, TOKENS), bool), clip=None)
    assert not finite(state).all()
    assert (results("titans_linear")[2].clipped == 1).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_is_not_a_number_loses_its_chunk_and_no_more(name: str) -> None:
    """Its chunk is undone and counted; without momentum, all goes on as if the chunk had not been read."""
    y, state, info = results(name)
    y, state, clipped = y[6:], jax.tree.map(lambda x: x[6:], state), info.clipped[6:]
    assert finite(state).all()
    outside = np.delete(y, np.arange(TOKENS)[POISONED], axis=2)
    assert finite(outside).all()
    assert (clipped[:2, :, POISONED.stop - 1] == 1).all()
    if RULES[name].learner.traces == 0 and RULES[name].learner.window == 1:
        np.testing.assert_array_equal(outside[:2], outside[[2, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["titans", "gated_deltanet"])
def test_300_000_hostile_tokens_leave_the_memory_finite(name: str) -> None:
    qkv = with_unit_keys(streams(300_032))
    y, state, _ = read(name, qkv, np.zeros(qkv.shape[:1] + qkv.shape[2:3], bool), clip=1.0, options=MANY)
    assert finite(state, y).all(), finite(state, y)
