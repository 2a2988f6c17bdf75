"""Any number of tokens at any offset, for engines that see whole chunks: the grid, resets, the scan over chunks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from titans_jax.memory.chunk_end import chunk_start
from titans_jax.memory.engine import Engine
from titans_jax.memory.types import Reset, Rule, State, Weights, from_origin, select

Valid = Array | np.ndarray


class Grid(NamedTuple):
    """`length` tokens from row `offset` on, in chunks of `size` rows. An int offset is known while tracing."""

    length: int
    size: int
    offset: Array | int = 0

    @property
    def chunks(self) -> int:
        """Chunks of the grid: those that the tokens touch, or as many as they may touch at any offset."""
        last = self.offset if isinstance(self.offset, int) else self.size - 1
        return -(-(last + self.length) // self.size)

    @property
    def rows(self) -> int:
        """Rows of the grid."""
        return self.chunks * self.size

    @property
    def valid(self) -> Valid:
        """[chunks, size] bool, which rows are tokens: a constant where the offset is known."""
        row = (np if isinstance(self.offset, int) else jnp).arange(self.rows)
        return ((row >= self.offset) & (row < self.offset + self.length)).reshape(self.chunks, self.size)

    def pad(self, x: Array, axis: int = 0, before: Array | None = None) -> Array:
        """[.., T, ..] -> [.., rows, ..]: zeros where no token is, or `before` in the first rows."""
        if self.rows == self.length:
            return x
        shape = (*x.shape[:axis], self.rows, *x.shape[axis + 1 :])
        padded = jnp.zeros(shape, x.dtype, out_sharding=jax.typeof(x).sharding)
        if before is not None:
            padded = lax.dynamic_update_slice_in_dim(padded, before, 0, axis)
        return lax.dynamic_update_slice_in_dim(padded, x, self.offset, axis)

    def split(self, x: Array, axis: int = 0, before: Array | None = None) -> Array:
        """[.., T, ..] -> [.., chunks, size, ..]; see `pad`."""
        x = self.pad(x, axis, before)
        return x.reshape(*x.shape[:axis], self.chunks, self.size, *x.shape[axis + 1 :])

    def join(self, x: Array, axis: int = 0) -> Array:
        """[.., chunks, size, ..] -> [.., T, ..]."""
        x = x.reshape(*x.shape[:axis], self.rows, *x.shape[axis + 2 :])
        return x if self.rows == self.length else lax.dynamic_slice_in_dim(x, self.offset, self.length, axis)


MOST = 1 << 30
"""Where a count of tokens stops, so that it does not wrap; only its row in a period goes on."""


def bounded(count: Any, period: int, most: int = MOST) -> Any:
    """An int32 count of tokens; if it is `most` or more, one near `most` with the same remainder by `period`."""
    stopped = most // period * period + count % period
    if isinstance(count, np.integer):  # known while tracing, and stays so
        return count if count < most else type(count)(stopped)
    return jnp.where(count < most, count, stopped)


def grid_of(length: int, size: int, step: Array) -> Grid:
    """The grid of a call after `step` tokens. A step that is a constant gives a constant offset."""
    return Grid(length, size, int(step) % size if isinstance(step, np.integer) else step % size)


def all_valid(valid: Valid | None) -> bool:
    """Whether it is known while tracing that every row is a token."""
    return valid is None or isinstance(valid, np.ndarray) and bool(valid.all())


def where_any(valid: Valid, run: Callable[[Any], tuple[Any, Any]], state: Any) -> tuple[Any, Any]:
    """run(state), a new state and outputs; where no row is valid, the old state and zeros, at no cost."""
    shapes = jax.eval_shape(run, state)[1]

    def skip(state: Any) -> tuple[Any, Any]:
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding), shapes)

    return lax.cond(valid.any(), run, skip, state)


def with_reset(reset: Reset | None, here: Array, state: State) -> State:
    """The reset state where `here` is true, else the state. Step and origin are those of the stream."""
    if reset is None:
        return state
    step, origin, initial = state.step, state.origin, state.initial
    if origin is not None:  # the weights of the reset state, relative to the stream's origin
        dual = jax.tree.map(jnp.subtract, from_origin(reset.state), origin)
        reset = reset._replace(state=reset.state._replace(dual=dual))
    new, old = (each._replace(step=jnp.int32(0), origin=None, initial=None) for each in (reset.state, state))
    return select(here, new, old)._replace(step=step, origin=origin, initial=initial)


GROUP = 32
"""Chunks whose states a backward pass holds at once, where there are more than twice as many."""


def in_groups(run: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any) -> tuple[Any, Any]:
    """run(state, xs of some chunks) -> state, ys on all chunks, group by group where they are many.

    The forward pass then keeps one state per group, not one per chunk, and the backward pass runs each group again:
    one part in GROUP of the states' bytes, for a second run of the writes.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    if count <= 2 * GROUP:
        return run(state, xs)
    full = count // GROUP * GROUP
    groups = jax.tree.map(lambda x: x[:full].reshape(-1, GROUP, *x.shape[1:]), xs)
    state, ys = lax.scan(jax.checkpoint(run), state, groups)
    ys = jax.tree.map(lambda y: y.reshape(full, *y.shape[2:]), ys)
    if count > full:
        state, rest = run(state, jax.tree.map(lambda x: x[full:], xs))
        ys = jax.tree.map(lambda *y: jnp.concatenate(y), ys, rest)
    return state, ys


Stream = Callable[[State, Any, Valid | None, Reset | None, Weights | None], tuple[Any, State, Weights | None]]
"""(state, tokens [T, ...], valid, reset, residual) -> what the engine returns [T, ...], state, anchors."""


def streaming(rule: Rule, many: Engine, single: Engine | None, chunk: int) -> Stream:
    """Any number of tokens: a scan over the chunks of their grid, each recomputed in the backward pass.

    With `valid` [T], the rows lie on the grid already. One token goes to `single`, where there is one. Tokens that are
    known while tracing to start a chunk are whole chunks and a rest: neither needs a mask.
    """

    def update(state: State, tokens: Any, valid: Valid | None, reset: Reset | None, residual: Weights | None) -> Any:
        T = len(jax.tree.leaves(tokens)[0])
        state = state._replace(step=bounded(state.step, chunk))
        grid = grid_of(T, chunk, state.step) if valid is None else Grid(T, chunk)
        for name, shift in (residual or {}).items():
            if len(shift) != grid.chunks:
                raise ValueError(f"residual[{name!r}]: {len(shift)} chunks; the call of {T} rows has {grid.chunks}")
        if valid is not None:
            return on_grid(many, grid, valid.reshape(-1, chunk), state, tokens, reset, residual)
        if single is not None and T == rule.learner.writes_per_token:
            return on_grid(single, Grid(T, T), None, state, tokens, reset, residual)
        rest = T % chunk
        if not isinstance(state.step, np.integer) or grid.offset or rest == 0:
            return on_grid(many, grid, grid.valid, state, tokens, reset, residual)
        if rest == T:
            return on_grid(many, Grid(T, T), None, state, tokens, reset, residual)

        def cut(start: int, stop: int) -> tuple[Any, Reset | None, Weights | None]:
            mask = None if reset is None else reset._replace(mask=reset.mask[start:stop])
            shift = jax.tree.map(lambda r: r[start // chunk : -(-stop // chunk)], residual)
            return jax.tree.map(lambda x: x[start:stop], tokens), mask, shift

        chunks = Grid(T - rest, chunk)
        out, state, anchors = on_grid(many, chunks, chunks.valid, state, *cut(0, T - rest))
        last, state, last_anchors = on_grid(many, Grid(rest, rest), None, state, *cut(T - rest, T))
        out, anchors = jax.tree.map(lambda *x: jnp.concatenate(x), (out, anchors), (last, last_anchors))
        return out, state, anchors

    def on_grid(
        engine: Engine,
        grid: Grid,
        valid: Valid | None,
        state: State,
        tokens: Any,
        reset: Reset | None,
        residual: Weights | None,
    ) -> Any:
        """valid: [chunks, size], or None where the rows are tokens of one chunk that do not reach its end."""
        at_start = valid is not None and all_valid(valid)
        touched = valid is None or isinstance(valid, np.ndarray) and bool(valid.any(1).all())
        rows, origin, initial = None if all_valid(valid) else jnp.asarray(valid), state.origin, state.initial
        state = state._replace(step=jnp.asarray(state.step))

        def carried(state: State) -> State:
            """Drop fields that are constant or can be rebuilt at a chunk start."""
            state = state._replace(origin=None, initial=None)
            return state._replace(anchor={}, weights=None) if at_start else state

        def rebuilt(state: State) -> State:
            state = state._replace(origin=origin, initial=initial)
            return chunk_start(rule, state) if at_start else state

        def body(state: State, xs: tuple[Any, ...]) -> tuple[State, Any]:
            (tokens, mask, valid, shift), plan = xs
            state = rebuilt(state)
            if reset is not None:
                here = mask[0] & (state.step % chunk == 0)
                state = with_reset(reset, here if valid is None else here & valid[0], state)
            anchors = None if residual is None else rule.retention.link(state.anchor)

            def write(state: State) -> tuple[State, Any]:
                state, out = engine.chunk_step(rebuilt(state), tokens, valid, shift, plan)
                return carried(state), out

            state = carried(state)
            state, out = write(state) if touched else where_any(valid, write, state)
            return state, (out, anchors)

        def run(state: State, xs: tuple[Any, ...]) -> tuple[State, Any]:
            (tokens, _, valid, _), plan = xs, None
            if engine.plan is not None:
                plan = jax.vmap(engine.plan, (0, None if valid is None else 0))(tokens.gates, valid)
            if len(jax.tree.leaves(tokens)[0]) > 1:
                return lax.scan(jax.checkpoint(body), state, (xs, plan))
            # One chunk needs neither a loop nor a second forward pass.
            state, out = body(state, jax.tree.map(lambda x: x[0], (xs, plan)))
            return state, jax.tree.map(lambda x: x[None], out)

        tokens, mask = jax.tree.map(grid.split, (tokens, None if reset is None else reset.mask))
        state, (out, anchors) = in_groups(run, carried(state), (tokens, mask, rows, residual))
        return jax.tree.map(grid.join, out), rebuilt(state), anchors

    return update
