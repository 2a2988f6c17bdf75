"""TNT: against its memories one by one, the local path's blindness to earlier shards, any split, causality."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close, same
from tests.memory.situations import absolute
from tests.oracles import recurrences
from titans_jax.memory import Gates, Reset, miras, presets
from titans_jax.memory.tnt import TNTState, tnt, tnt_weights

DIM, CHUNK, SHARD, LOCAL, TOKENS = 4, 8, 4, (2, 4), 15
RULE = presets.titans(DIM, expansion=2)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def memory(local: tuple[int, ...] = LOCAL, to_origin: bool = False) -> Any:
    made = tnt(presets.titans(DIM, expansion=2, to_origin=to_origin), chunk=CHUNK, local_chunks=local, shard=SHARD)
    return made._replace(update=jax.jit(made.update, compiler_options=QUICK))


@functools.cache
def start(local: tuple[int, ...] = LOCAL, to_origin: bool = False) -> TNTState:
    weights = jax.tree.map(np.asarray, tnt_weights(RULE, jax.random.key(0), len(local)))
    return jax.device_get(memory(local, to_origin).init(jax.tree.map(lambda w: w.astype(np.float64), weights)))


def sequence(tokens: int = TOKENS, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, tokens, DIM))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    gates = Gates(rng.uniform(0, 0.3, tokens), rng.uniform(0, 0.9, tokens), rng.uniform(0.8, 1, tokens))
    return q, k, v, gates


def part(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def by_hand(
    state: TNTState, tokens: Any, local: tuple[int, ...] = LOCAL, to_origin: bool = False
) -> tuple[np.ndarray, Any]:
    """The global memory at its anchors, and the local ones shard by shard, all by `recurrences.titans`.

    Returns y, and the last weights of the local memories and Pi.
    """
    q, k, v, gates = tokens
    y, last, pi = np.zeros_like(q), {}, None
    titans = functools.partial(recurrences.titans, to_origin=to_origin)
    whole = absolute(state.global_memory)
    for at in range(0, len(q), CHUNK):
        before = (q[:at], k[:at], v[:at], *part(gates, slice(at))[:3])
        anchor = titans(whole, *before, CHUNK, 1.0)[1] if at else whole
        y[at : at + CHUNK] += [recurrences.residual_mlp(anchor, x) for x in q[at : at + CHUNK]]
    for at in range(0, len(q), SHARD):
        q1, k1, v1, gates1 = part(tokens, slice(at, at + SHARD))
        seen = np.tril(q1 @ k1.T) @ k1
        pi = k1.T @ k1
        for i, chunk in enumerate(local):
            y1, last[i] = titans(absolute(state.local_memories[i]), seen, k1, v1, *gates1[:3], chunk, 1.0)
            y[at : at + SHARD] += y1
    return y, (tuple(last.values()), pi)


def near(state: TNTState) -> Any:
    """What `by_hand` has of the last state."""
    return tuple(absolute(s) for s in state.local_memories), state.pi


HOW = [(LOCAL, False), pytest.param((1,), False, marks=pytest.mark.slow), ((2,), True)]


@pytest.mark.parametrize("local, to_origin", HOW, ids=["two", "stage 2", "to_origin"])
def test_it_is_its_memories_one_by_one(local, to_origin):
    """Stage 2 is the same weights with a smaller local chunk."""
    first = start(local, to_origin)
    y, state, info = memory(local, to_origin).update(first, *sequence())
    want, last = by_hand(first, sequence(), local, to_origin)
    close(y, want, 1e-9)
    close(near(state), last, 1e-9)
    assert int(state.step) == TOKENS and info.surprise.shape == (TOKENS,)


def test_the_local_path_ignores_the_earlier_shard():
    tokens, other = sequence(2 * SHARD), sequence(2 * SHARD, seed=1)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:SHARD], b[SHARD:]]), other, tokens)
    y, state, _ = memory().update(start(), *tokens)
    y1, state1, _ = memory().update(start(), *mixed)
    same(y1[SHARD:], y[SHARD:])  # the global memory is still at its first anchor
    same(near(state1), near(state))
    assert all((state1.global_memory.dual[n] != w).any() for n, w in state.global_memory.dual.items())


@pytest.mark.slow
def test_the_projection_is_linear_attention_of_keys_to_keys():
    """Pi_t q_t as a memory of its own, whose outputs are the local memory's queries."""
    q, k, v, gates = sequence(SHARD)
    ones = Gates(*np.ones((3, SHARD)))
    sums = miras(presets.linear_attention(DIM), chunk=3, clip=None)
    seen, _, _ = sums.update(sums.init({"w": np.zeros((DIM, DIM))}), q, k, k, ones)
    alone, whole = miras(RULE, chunk=2), miras(RULE, chunk=CHUNK)
    y, _, _ = alone.update(alone.init(start((2,)).local_memories[0].dual), seen, k, v, gates)
    y += whole.read(whole.init(start((2,)).global_memory.dual), q)
    close(memory((2,)).update(start((2,)), q, k, v, gates)[0], y, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("to_origin", [False, True], ids=["to zero", "to_origin"])
def test_any_split(to_origin):
    tokens, first, how = sequence(), start(LOCAL, to_origin), memory(LOCAL, to_origin)
    whole = jax.device_get(how.update(first, *tokens)[:2])
    for lengths in ([1] * TOKENS, [5, 5, 5], [1, 1, 1, 5, 1, 5, 1]):
        state, ys, at = first, [], 0
        for n in lengths:
            y, state, _ = how.update(state, *part(tokens, slice(at, at + n)))
            ys.append(y)
            at += n
        close((np.concatenate(ys), state), whole, 1e-10, f"{lengths}: ")
    q = tokens[0][:1]
    read = how.read(state, q)
    frozen = Gates(np.zeros(1), np.zeros(1), np.ones(1))
    y, _, _ = how.update(state, q, np.zeros((1, DIM)), q, frozen)  # a key of zeros writes nothing
    assert at % SHARD, "inside a shard"
    close(y, read, 1e-6)


@pytest.mark.slow
def test_rows_that_are_no_tokens_are_passed_over():
    tokens = sequence(5)
    y, state, _ = memory().update(start(), *tokens)
    laid = jax.tree.map(lambda x: np.concatenate([x, np.ones((3, *x.shape[1:]))]), tokens)
    y1, state1, _ = memory().update(start(), *laid, valid=np.arange(8) < 5)
    close((y1[:5], state1), (y, state), 1e-10)
    known = tnt(RULE, chunk=CHUNK, local_chunks=LOCAL, shard=SHARD)
    y1, state1, _ = jax.jit(functools.partial(known.update, valid=np.arange(8) < 5))(start(), *laid)
    close((y1[:5], state1), (y, state), 1e-10)


@pytest.mark.slow
def test_a_reset_is_a_new_stream():
    tokens = sequence()
    mask = np.arange(TOKENS) == CHUNK
    y, _, _ = memory().update(start(), *tokens, reset=Reset(mask, start()))
    alone, _, _ = memory().update(start(), *part(tokens, slice(CHUNK, TOKENS)))
    close(y[CHUNK:], alone, 1e-10)


def test_no_token_changes_what_came_before_it():
    tokens = sequence()
    y = np.asarray(memory().update(start(), *tokens)[0])
    for t in range(1, TOKENS):
        changed = jax.tree.map(np.copy, tokens)
        for x in jax.tree.leaves(changed):
            x[t] = x[t] / 2 + 0.25
        moved = np.asarray(memory().update(start(), *changed)[0])
        same(moved[:t], y[:t])
        assert (moved[t] != y[t]).any()


@pytest.mark.parametrize("sizes", [dict(chunk=6), dict(shard=3), dict(local_chunks=(3,))], ids=str)
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match="each must be a multiple of the next"):
        tnt(RULE, **dict(chunk=CHUNK, shard=SHARD, local_chunks=LOCAL) | sizes)


def test_a_residual_is_refused():
    with pytest.raises(NotImplementedError, match="tnt: no weight residual"):
        memory().update(start(), *sequence(), residual={})
