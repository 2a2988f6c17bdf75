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


def test_a_chunk_that_is_lost_keeps_no_momentum_where_single_tokens_end_it() -> None:
    memory = miras(PRESETS["titans"](DIM), chunk=CHUNK)
    q, k, v = np.random.default_rng(2).normal(size=(3, 2 * CHUNK, DIM)).astype("float32") / 2
    k[CHUNK + 1] = np.nan
    gates = Gates(*(jnp.full(2 * CHUNK, x) for x in (0.05, 0.9, 0.99)))

    @jax.jit
    def read(state: Any, tokens: Any) -> Any:
        return memory.update(state, *tokens)[1]

    start, tokens = memory.init(PRESETS["titans"](DIM).architecture.init(jax.random.key(0))), (q, k, v, gates)
    whole = pieces = read(start, jax.tree.map(lambda x: x[:CHUNK], tokens))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole.traces)) > 0
    whole = read(whole, jax.tree.map(lambda x: x[CHUNK:], tokens))
    for start_, end in [(CHUNK, CHUNK + 3), *((i, i + 1) for i in range(CHUNK + 3, 2 * CHUNK))]:
        pieces = read(pieces, jax.tree.map(lambda x, a=start_, b=end: x[a:b], tokens))
    jax.tree.map(np.testing.assert_array_equal, pieces.traces, whole.traces)
