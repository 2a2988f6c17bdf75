"""Law 13: counters do not wrap. A stream near 2^31 tokens answers as the same stream with small counters."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import FAST, RULES, SAME
from tests.memory.situations import with_writes
from titans_jax.memory import PRESETS, Gates, Memory, miras, presets
from titans_jax.memory.stream import MOST, bounded
from titans_jax.memory.tnt import TNTState, tnt, tnt_weights

DIM, CHUNK = 4, 6  # a chunk that does not divide 2^31
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRESETS if name not in SAME]


def same_row(step: int, period: int) -> int:
    """The largest count with this step's row in a period that is 8 tokens or more before int32 wraps."""
    return (2**31 - 8 - period) // period * period + step % period


@pytest.mark.parametrize("name", NAMES)
def test_a_memory_near_the_end_of_int32_answers_as_at_the_start(name: str) -> None:
    rule = RULES[name]
    memory = miras(rule, chunk=CHUNK)
    start = memory.init(rule.architecture.init(jax.random.key(0)))
    equal_near_the_end(memory, start, rule, lambda state, step: state._replace(step=jnp.int32(step)))


def test_so_do_the_memories_of_tnt() -> None:
    rule = presets.titans(DIM)
    memory = tnt(rule, chunk=CHUNK, local_chunks=(3,), shard=3)

    def at(state: TNTState, step: int) -> TNTState:
        return state._replace(global_memory=state.global_memory._replace(step=jnp.int32(step)))

    equal_near_the_end(memory, memory.init(tnt_weights(rule, jax.random.key(0), 1)), rule, at)


def equal_near_the_end(memory: Memory, start: Any, rule: Any, at: Any) -> None:
    """Read 21 tokens; then 21, 1 and 21 with the count that this gives, and with one near 2^31: equal, bit for bit."""
    q, k, v = jax.random.normal(jax.random.key(1), (3, 64, DIM))
    rate = jnp.full((64, rule.learner.writes_per_token), 0.1)
    gates = Gates(rate if rule.learner.writes_per_token > 1 else rate[:, 0], jnp.full(64, 0.5), jnp.full(64, 0.9))
    tokens = q, with_writes(rule, k[None])[0], with_writes(rule, v[None])[0], gates
    update = jax.jit(memory.update, compiler_options=QUICK)

    def read(state: Any) -> list[Any]:
        found = []
        for part in (slice(21, 42), slice(42, 43), slice(43, 64)):
            y, state, info = update(state, *jax.tree.map(operator.itemgetter(part), tokens))
            found += [y, info]
        return found

    start = jax.tree.map(jnp.asarray, start)
    _, state, _ = update(start, *jax.tree.map(operator.itemgetter(slice(21)), tokens))
    for here, there in zip(*map(jax.tree.leaves, (read(state), read(at(state, same_row(21, CHUNK))))), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("kind", [np.int32, jnp.int32])
def test_a_count_stops_and_its_row_goes_on(kind: Any) -> None:
    for period in (1, 6, 64, 1000):
        for count in (0, 5, MOST - 1, MOST, MOST + 7, 2**31 - 1):
            found = bounded(kind(count), period)
            assert found % period == count % period and (found == count or MOST - period <= found < MOST + period)
