"""TNT: against its memories one by one, the local path's blindness to earlier shards, any split, causality."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close, same
from tests.memory import oracles
from titans_jax.memory import Gates, Restart, Span, miras, presets
from titans_jax.memory.tnt import first_weights, tnt

DIM, CHUNK, SHARD, LOCAL, TOKENS = 4, 8, 4, (2, 4), 15
RULE = presets.titans(DIM, expansion=2)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def memory(local: tuple[int, ...] = LOCAL) -> Any:
    made = tnt(RULE, chunk=CHUNK, local_chunks=local, shard=SHARD)
    return made._replace(update=jax.jit(made.update, compiler_options=QUICK))


@functools.cache
def start(local: tuple[int, ...] = LOCAL) -> Any:
    weights = jax.tree.map(np.asarray, first_weights(RULE, jax.random.key(0), len(local)))
    return jax.device_get(memory(local).init(jax.tree.map(lambda w: w.astype(np.float64), weights)))


def sequence(tokens: int = TOKENS, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, tokens, DIM))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    gates = Gates(rng.uniform(0, 0.3, tokens), rng.uniform(0, 0.9, tokens), rng.uniform(0.8, 1, tokens))
    return q, k, v, gates


def part(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def under(weights: Any, prefix: str) -> Any:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def by_hand(state: Any, tokens: Any, local: tuple[int, ...] = LOCAL) -> tuple[np.ndarray, Any]:
    """The global memory at its anchors, and the local ones shard by shard, all by `oracles.titans`."""
    q, k, v, gates = tokens
    y, last = np.zeros_like(q), {}
    whole = under(state.dual, "global_")
    for at in range(0, len(q), CHUNK):
        before = (q[:at], k[:at], v[:at], *part(gates, slice(at))[:3])
        anchor = oracles.titans(whole, *before, CHUNK, 1.0)[1] if at else whole
        y[at : at + CHUNK] += [oracles.residual_mlp(anchor, x) for x in q[at : at + CHUNK]]
    for at in range(0, len(q), SHARD):
        q1, k1, v1, gates1 = part(tokens, slice(at, at + SHARD))
        seen = np.tril(q1 @ k1.T) @ k1
        last["pi"] = k1.T @ k1
        for i, chunk in enumerate(local):
            weights = under(state.dual, f"local_{i}_")
            y1, weights = oracles.titans(weights, seen, k1, v1, *gates1[:3], chunk, 1.0)
            y[at : at + SHARD] += y1
            last |= {f"local_{i}_{name}": w for name, w in weights.items()}
    return y, last


@pytest.mark.parametrize("local", [LOCAL, pytest.param((1,), marks=pytest.mark.slow)], ids=["two", "stage 2"])
def test_it_is_its_memories_one_by_one(local):
    """Stage 2 is the same weights with a smaller local chunk."""
    y, state, info = memory(local).update(start(local), *sequence())
    want, last = by_hand(start(local), sequence(), local)
    close(y, want, 1e-9)
    close({name: state.dual[name] for name in last}, last, 1e-9)
    assert int(state.step) == TOKENS and info.surprise.shape == (TOKENS,)


def test_the_local_path_ignores_the_earlier_shard():
    tokens, other = sequence(2 * SHARD), sequence(2 * SHARD, seed=1)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:SHARD], b[SHARD:]]), other, tokens)
    y, state, _ = memory().update(start(), *tokens)
    y1, state1, _ = memory().update(start(), *mixed)
    same(y1[SHARD:], y[SHARD:])  # the global memory is still at its first anchor
    near = lambda state: {name: w for name, w in state.dual.items() if not name.startswith("global_")}
    same(near(state1), near(state))
    assert all((state1.dual[n] != state.dual[n]).any() for n in state.dual if n.startswith("global_"))


@pytest.mark.slow
def test_the_projection_is_linear_attention_of_keys_to_keys():
    """Pi_t q_t as a memory of its own, whose outputs are the local memory's queries."""
    q, k, v, gates = sequence(SHARD)
    ones = Gates(*np.ones((3, SHARD)))
    sums = miras(presets.linear_attention(DIM), chunk=3, clip=None)
    seen, _, _ = sums.update(sums.init({"w": np.zeros((DIM, DIM))}), q, k, k, ones)
    alone, y = miras(RULE, chunk=2), 0.0
    for prefix in ("local_0_",):
        weights = under(start((2,)).dual, prefix)
        y += alone.update(alone.init(weights), seen, k, v, gates)[0]
    whole = miras(RULE, chunk=CHUNK)
    y += whole.read(whole.init(under(start((2,)).dual, "global_")), q)
    close(memory((2,)).update(start((2,)), q, k, v, gates)[0], y, 1e-10)


@pytest.mark.slow
def test_any_split():
    tokens = sequence()
    whole = jax.device_get(memory().update(start(), *tokens)[:2])
    for lengths in ([1] * TOKENS, [5, 5, 5], [1, 1, 1, 5, 1, 5, 1]):
        state, ys, at = start(), [], 0
        for n in lengths:
            y, state, _ = memory().update(state, *part(tokens, slice(at, at + n)))
            ys.append(y)
            at += n
        close((np.concatenate(ys), state), whole, 1e-10, f"{lengths}: ")
    q = tokens[0][:1]
    read = memory().read(state, q)
    frozen = Gates(np.zeros(1), np.zeros(1), np.ones(1))
    y, _, _ = memory().update(state, q, np.zeros((1, DIM)), q, frozen)  # a key of zeros writes nothing
    assert at % SHARD, "inside a shard"
    close(y, read, 1e-6)


@pytest.mark.slow
def test_rows_that_are_no_tokens_are_passed_over():
    tokens = sequence(5)
    y, state, _ = memory().update(start(), *tokens)
    laid = jax.tree.map(lambda x: np.concatenate([x, np.ones((3, *x.shape[1:]))]), tokens)
    y1, state1, _ = memory().update(start(), *laid, span=Span(0, 5))
    close((y1[:5], state1), (y, state), 1e-10)


@pytest.mark.slow
def test_a_restart_begins_anew():
    tokens = sequence()
    mask = np.arange(TOKENS) == CHUNK
    y, _, _ = memory().update(start(), *tokens, reset=Restart(mask, start()))
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
