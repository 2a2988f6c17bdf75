"""TNT: one memory that carries the stream and small ones that are made anew (arXiv 2511.07343).

    y_t = M_G(q_t) + sum_i M_i(Pi_t q_t)        Pi_t = sum of k_s^T k_s over the tokens s <= t of the shard

M_G, of a large chunk, is read as it was when its chunk began. The local memories M_i, of small chunks, and Pi begin
anew every `shard` tokens, so that shards do not wait for each other: they are a batch. A shorter local chunk with the
same weights is the paper's second stage.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.api import miras
from titans_jax.memory.base import Gates, Info, Memory, Restart, Rule, Span, State, Weights, dense
from titans_jax.memory.scan import by_chunks, covers, lay, real_rows, select, within

GLOBAL, PI = "global_", "pi"


def first_weights(rule: Rule, key: Array, locals: int) -> Weights:
    """A rule's first weights for M_G and each M_i, their names as global_w1, local_0_w1: what `tnt`'s init takes."""
    names = [GLOBAL, *(_local(i) for i in range(locals))]
    keys = jax.random.split(key, len(names))
    return {n + name: w for n, k in zip(names, keys, strict=True) for name, w in rule.architecture.init(k).items()}


def tnt(
    rule: Rule,
    *,
    chunk: int,
    local_chunks: Sequence[int],
    shard: int,
    clip: float | None = 1.0,
    implementation: str | None = None,
    matmul_dtype: str = "float32",
) -> Memory:
    """The memory above, with `rule` for all of its memories; they are written with the same k, v and gates.

    Args:
      rule, clip, implementation, matmul_dtype: as `miras` has them.
      chunk: of M_G, a multiple of `shard`. With a span, a call's rows lie on the grid of these chunks.
      local_chunks: one for each M_i, which divide `shard`.
      shard: tokens between two beginnings of the local memories.

    Returns:
      A `Memory` whose State has the memories side by side, as `first_weights` names them; its home is what the local
      memories begin from. Info is of M_G.

    Raises:
      ValueError: sizes that do not divide each other. NotImplementedError: a link that is not the identity; by update,
      a residual. What `miras` raises.
    """
    if chunk % shard or any(shard % c for c in local_chunks):
        raise ValueError(
            f"tnt: chunk {chunk}, shard {shard}, local {tuple(local_chunks)}; each must be a multiple of the next"
        )
    if not rule.retention.identity:
        raise NotImplementedError("tnt: the link is not the identity, and what a shard begins with is a dual")
    made = functools.partial(miras, rule, clip=clip, implementation=implementation, matmul_dtype=matmul_dtype)
    whole, parts = made(chunk=chunk), [made(chunk=c) for c in local_chunks]

    def init(weights: Weights) -> State:
        states = {_local(i): part.init(_under(weights, _local(i))) for i, part in enumerate(parts)}
        states[GLOBAL] = whole.init(_under(weights, GLOBAL))
        first = jax.tree.leaves(states[GLOBAL].dual)[0]
        dim = jax.tree.leaves(_under(weights, GLOBAL))[0].shape[0]
        state = _join(states | {"": _sum_state(jnp.zeros((dim, dim), first.dtype))}, jnp.zeros((), jnp.int32))
        return state._replace(home=jax.tree.map(jnp.copy, state.dual))

    def read(state: State, q: Array) -> Array:
        x = q.astype(state.dual[PI].dtype)
        y = rule.architecture.apply(dense(_under(state.anchor, GLOBAL)), x)
        x = x @ state.dual[PI]
        for i in range(len(parts)):
            y = y + rule.architecture.apply(dense(_under(state.dual, _local(i))), x)
        return y.astype(q.dtype)

    def write_whole(state: State, tokens: Any, span: Span | None) -> tuple[State, Any]:
        """M_G: one chunk, read as it was when the chunk began."""
        y = rule.architecture.apply(dense(state.anchor), tokens[0])
        _, state, info = whole.update(state, *tokens, span=span)
        return state, (y, info)

    def write_parts(state: State, tokens: Any, span: Span | None) -> tuple[Array, State]:
        """Pi and every M_i: tokens of one shard."""
        q, k, v, gates = tokens
        real = jnp.ones(q.shape[0]) if span is None else real_rows(span, q.shape[0])
        keys = k * real[:, None].astype(k.dtype)
        pi = state.dual[PI]
        q = q @ pi + jnp.tril(q @ keys.T) @ keys
        y, new = jnp.zeros_like(q), {"": _sum_state(pi + keys.T @ keys)}
        for i, part in enumerate(parts):
            y_i, new[_local(i)], _ = part.update(_substate(state, _local(i), rule), q, k, v, gates, span=span)
            y = y + y_i
        return y, _join(new, state.step)

    def sharded(state: State, tokens: Any, span: Span | None) -> tuple[Array, State]:
        """Every shard from its own beginning, all at once: the first one goes on from the state."""
        T, at = tokens[0].shape[0], state.step % shard
        fresh = _beginning(state)
        if T == 1 and span is None:
            return write_parts(select(at == 0, fresh, state)._replace(step=at), tokens, None)
        tokens, real, inside, back = lay(tokens, shard, state.step, span)
        known = covers(inside, real.size)
        first, last = inside.first // shard, (inside.first + inside.length - 1) // shard

        def one(number: Array, tokens: Any, real: Array) -> tuple[Array, State]:
            here = Span(0, shard) if known else within(real)
            goes_on = (number == first) & (at != 0)
            return write_parts(select(goes_on, state, fresh)._replace(step=here.first), tokens, here)

        y, states = jax.vmap(one)(jnp.arange(len(real)), tokens, real)
        return back(y), jax.tree.map(lambda x: x[last], states)

    def update(
        state: State,
        q: Array,
        k: Array,
        v: Array,
        gates: Gates,
        *,
        span: Span | None = None,
        reset: Restart | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, State, Info]:
        if residual is not None:
            raise NotImplementedError("tnt: no weight residual")
        dtype = state.dual[PI].dtype
        tokens = jax.tree.map(lambda x: x.astype(dtype), (q, k, v, gates))
        begins = None if reset is None else reset._replace(state=_substate(reset.state, GLOBAL, rule))
        (y, info), new = by_chunks(
            write_whole, _substate(state, GLOBAL, rule), tokens, chunk=chunk, span=span, reset=begins
        )
        near, local = sharded(state, tokens, span)
        return (y + near).astype(q.dtype), _join({"": local, GLOBAL: new}, new.step)._replace(home=state.home), info

    return Memory(init, read, update)


def _local(number: int) -> str:
    return f"local_{number}_"


def _under(weights: Weights, prefix: str) -> Weights:
    """One memory's part of all weights, by its own names."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def _substate(state: State, prefix: str, rule: Rule) -> State:
    """One memory's part of the state."""
    traces = tuple(_under(trace, prefix) for trace in state.learner)
    home = _under(state.home, prefix) if state.home is not None and rule.retention.home else None
    return State(_under(state.dual, prefix), traces, _under(state.anchor, prefix), state.step, home)


def _join(states: dict[str, State], step: Array) -> State:
    """The memories' states, each under its prefix, side by side."""

    def together(parts: dict[str, Weights]) -> Weights:
        return {prefix + name: w for prefix, weights in parts.items() for name, w in weights.items()}

    def of(get: Callable[[State], Weights]) -> Weights:
        return together({prefix: get(state) for prefix, state in states.items()})

    count = max(len(state.learner) for state in states.values())
    traces = tuple(
        together({prefix: state.learner[i] for prefix, state in states.items() if i < len(state.learner)})
        for i in range(count)
    )
    return State(of(lambda state: state.dual), traces, of(lambda state: state.anchor), step)


def _sum_state(pi: Array) -> State:
    """Pi as a memory without traces; it has no gradient, so that its anchor is nothing but itself."""
    return State({PI: pi}, (), {PI: pi + 0}, jnp.zeros((), jnp.int32))


def _beginning(state: State) -> State:
    """The state as a shard begins."""
    assert state.home is not None, "tnt makes its states with a home"
    traces = jax.tree.map(jnp.zeros_like, state.learner)
    return state._replace(dual=state.home, learner=traces, anchor=state.home)
