"""Law 12 backward: a token that is not finite is in no gradient of a loss that does not see it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import FAST, RULES, SAME
from tests.memory.situations import with_writes
from titans_jax.memory import PRESETS, Gates, Reset, miras

DIM, CHUNK, TOKENS = 4, 8, 32
LOST = 11  # in the second chunk
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRESETS if name not in SAME]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("resets", [False, True], ids=["undone", "reset"])
@pytest.mark.parametrize("name", NAMES)
def test_a_chunk_that_is_undone_or_reset_reaches_no_gradient(name: str, resets: bool, value: float) -> None:
    rule = RULES[name]
    memory = miras(rule, chunk=CHUNK)
    start = memory.init(rule.architecture.init(jax.random.key(0)))
    mask = jnp.arange(TOKENS) == 2 * CHUNK
    seen = jnp.asarray((np.arange(TOKENS) < LOST) | (np.arange(TOKENS) >= 2 * CHUNK))

    def loss(arrays: Any, spoilt: Any) -> Any:
        (q, k, v), rate, keep, weights = arrays
        q, k, v = (jnp.asarray(x).at[LOST].set(spoilt) for x in (q, k, v))
        if rule.learner.writes_per_token > 1:
            rate = jnp.repeat(rate[:, None], rule.learner.writes_per_token, 1)
        state = memory.init(weights)
        reset = Reset(mask, start) if resets else None
        gates = Gates(rate, jnp.full(TOKENS, 0.5), keep)
        y, end, _ = memory.update(state, q, k, v, gates, reset=reset)
        return (jnp.where(seen[:, None], y, 0) ** 2).sum() + sum((w**2).sum() for w in jax.tree.leaves(end.dual))

    q, k, v = np.random.default_rng(1).normal(size=(3, 1, TOKENS, DIM)).astype("float32") / 2
    qkv = q[0], with_writes(rule, k)[0], with_writes(rule, v)[0]
    arrays = qkv, jnp.full(TOKENS, 0.05), jnp.full(TOKENS, 0.99), rule.architecture.init(jax.random.key(0))
    value_, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(arrays, value)
    assert np.isfinite(value_)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
