"""Memories that write each other: the recurrence by hand, any split, causality, resets, gradients."""

import functools
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close, same
from tests.oracles import delta
from titans_jax.memory import Reset, presets
from titans_jax.memory.self_modifying import Readout, self_modifying

DIM, CHUNK, TOKENS = 4, 4, 14
RULE = presets.dgd(DIM, expansion=2)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def memories(**choices):
    made = self_modifying(RULE, **dict(chunk=CHUNK, max_rate=0.2, clip=1.0) | choices)
    return made.init, jax.jit(made.update, compiler_options=QUICK)


def case(tokens: int = TOKENS):
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(5, DIM, 8)) / 2, "w2": rng.normal(size=(5, 8, DIM)) / 2}
    q, x = rng.normal(size=(2, tokens, DIM))
    readout = Readout(rng.normal(size=(2, DIM)), np.array([0.0, 2.0]))
    return weights, (q, x, np.zeros(tokens), readout)


@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_it_is_its_recurrence(clip):
    weights, (q, x, momentum, readout) = case()
    init, update = memories(clip=clip)
    y, state, _ = update(init(weights), q, x, momentum, readout)
    each = [{name: w[i] for name, w in weights.items()} for i in range(5)]
    want, last = delta.self_modifying(each, q, x, *readout, 0.2, CHUNK, clip)
    close(y, want, 1e-10)
    for i in range(5):
        close({name: w[i] for name, w in state.dual.items()}, last[i], 1e-10, f"memory {i}")
    assert np.abs(want - delta.self_modifying(each, q, x, *readout, 0.2, CHUNK, None)[0]).max() > 1e-3 or (clip == 1.0)


def test_frozen_memories_keep_their_initial_weights():
    weights, (q, x, momentum, readout) = case()
    init, update = memories(frozen=True)
    first = init(weights)
    y, state, _ = update(first, q, x, momentum, readout)
    each = [{name: w[i] for name, w in weights.items()} for i in range(5)]
    want, last = delta.self_modifying(each, q, x, *readout, 0.2, CHUNK, 1.0, learns=[4])
    close(y, want, 1e-10)
    close({name: w[4] for name, w in state.dual.items()}, last[4], 1e-10)
    same(*({name: w[:4] for name, w in of.dual.items()} for of in (state, first)))


def test_any_split():
    weights, (q, x, momentum, readout) = case()
    init, update = memories()
    whole = update(init(weights), q, x, momentum, readout)[:2]
    for lengths in ([1] * TOKENS, [5, 5, 1, 1, 1, 1], [1, 1, 5, 1, 5, 1]):
        state, ys, at = init(weights), [], 0
        for n in lengths:
            rows = slice(at, at + n)
            y, state, _ = update(state, q[rows], x[rows], momentum[rows], readout)
            ys.append(y)
            at += n
        close((np.concatenate(ys), state), whole, 1e-10, f"{lengths}")


def test_no_token_changes_what_came_before_it_and_its_input_changes_what_comes_after():
    weights, (q, x, momentum, readout) = case()
    init, update = memories()
    y = np.asarray(update(init(weights), q, x, momentum, readout)[0])
    for t in range(TOKENS - 1):
        other = x.copy()
        other[t] += 1
        moved = np.asarray(update(init(weights), q, other, momentum, readout)[0])
        same(moved[: t + 1], y[: t + 1])  # y_t itself is read before the write of t
        assert (moved[t + 1 :] != y[t + 1 :]).any(-1).all()


@pytest.mark.slow
def test_a_reset_at_a_chunk_start_is_a_new_stream():
    weights, (q, x, momentum, readout) = case()
    init, update = memories()
    mask = np.isin(np.arange(TOKENS), [6, 8])  # 6 is no chunk's start
    y, _, _ = update(init(weights), q, x, momentum, readout, Reset(mask, init(weights)))
    parts = [update(init(weights), q[r], x[r], momentum[r], readout)[0] for r in (slice(0, 8), slice(8, TOKENS))]
    close(y, np.concatenate(parts), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("through_targets", [False, True])
def test_gradients_are_those_of_single_steps(through_targets):
    """Chunks against token by token: whether the targets are constants is the same in both."""
    weights, (q, x, momentum, readout) = case(4)
    made = self_modifying(RULE, chunk=2, max_rate=0.2, through_targets=through_targets)

    weigh = np.random.default_rng(1).normal(size=q.shape)

    def loss(arguments, pieces):
        weights, q, x, readout = arguments
        state, total = made.init(weights), 0.0
        for rows in pieces:
            y, state, _ = made.update(state, q[rows], x[rows], momentum[rows], readout)
            total += (weigh[rows] * y).sum()
        return total + sum((w * w).sum() for w in jax.tree.leaves(state.dual))

    def gradient(pieces):
        return jax.jit(jax.grad(functools.partial(loss, pieces=pieces)), compiler_options=QUICK)(
            (weights, q, x, readout)
        )

    close(gradient([slice(0, 4)]), gradient([slice(t, t + 1) for t in range(4)]), 1e-9)
