"""Test-time training of the layers' MLPs on the model's own next-token loss.

Level l of each CMS (`nn.cms`) has kernels W_l for each sequence. Tokens are read in chunks of the smallest period C:

    g_l  = sum over the last C_l tokens of the gradient of -log p(x_{t+1} | x_{<=t}) by W_l, through all layers
    W_l <- W_l - rate g_l min(1, clip / |g_l|)        every C_l tokens (Nested Learning Eq 71; one level is TTT-E2E)

A chunk's loss uses the kernels that read the chunk. Its last target is the next chunk's first token, so the update
happens when that token arrives. The training gradient goes through the updates unless `first_order` is set.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from titans_jax.memory import Weights
from titans_jax.memory.stream import bounded
from titans_jax.memory.types import select
from titans_jax.nn import LM, LayerInfo, LMState
from titans_jax.nn.cms import kernels_of, sequence_norm, with_kernels
from titans_jax.nn.model import unstacked

Levels = list[list[Weights]]


class InnerState(NamedTuple):
    """A stream's state.

    now: the LM's state after the last token.
    chunk_start: the LM's state at the chunk's start, at which the chunk's gradient is taken.
    read: [B, C], the chunk's tokens so far.
    reset_at_start: [B] bool, whether a document starts with the chunk.
    sums: the sum of gradients since each level's last update, with the shapes of its kernels.
    step: tokens read, int32 scalar.
    """

    now: LMState
    chunk_start: LMState
    read: Array
    reset_at_start: Array
    sums: Levels
    step: Array | np.int32


class InnerLoop(LM):
    """An `LM` whose CMS is trained at test time; same parameters and calls. At rate 0 it equals the LM.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from titans_jax.nn import CMSConfig, ModelConfig
    >>> config = ModelConfig("hope_attention", dim=16, depth=1, heads=2, head_dim=8, cms=CMSConfig(periods=(4, 8)))
    >>> model = InnerLoop(config, rngs=nnx.Rngs(0))
    >>> logits, state, _ = model(jnp.arange(10)[None], model.init_state(batch=1))
    >>> logits.shape, int(state.step)
    ((1, 10, 256), 10)
    """

    @property
    def chunk(self) -> int:
        """C, the smallest period."""
        return min(period for period in self.config.cms.periods if period)

    def init_state(self, batch: int) -> InnerState:  # type: ignore[override]  # the calls are the same
        """The state before the first token. Its step is a constant, so a call from it compiles whole chunks only."""
        now = super().init_state(batch)
        chunk_start = jax.tree.map(lambda x: x + 0, now)
        sums = jax.tree.map(jnp.zeros_like, kernels_of(now.blocks))
        read = jnp.zeros((batch, self.chunk), jnp.int32) + 0 * now.age[:, None]
        return InnerState(now, chunk_start, read, now.age < 0, sums, np.int32(0))

    def state_by_layer(self, state: InnerState) -> InnerState:
        """As `LM.state_by_layer`."""
        now, chunk_start = (super(InnerLoop, self).state_by_layer(one) for one in (state.now, state.chunk_start))
        sums = [list(unstacked(level, self.config.repeats)) for level in state.sums]
        return state._replace(now=now, chunk_start=chunk_start, sums=sums)

    def over_layers(self, act: Callable[[Array], Array], state: InnerState) -> InnerState:
        """As `LM.over_layers`."""
        now, chunk_start = (super(InnerLoop, self).over_layers(act, one) for one in (state.now, state.chunk_start))
        return state._replace(now=now, chunk_start=chunk_start, sums=jax.tree.map(act, state.sums))

    def __call__(  # type: ignore[override]
        self, tokens: Array, state: InnerState | None = None, reset: Array | None = None, *, aligned: bool = False
    ) -> tuple[Array, InnerState, LayerInfo | None]:
        """As `LM`. A call that does not start at a chunk's start reads token by token.

        reset: true where a document starts, at multiples of every period; its kernels are reset to the parameters.
        """
        tokens = jnp.asarray(tokens)
        state = self.init_state(tokens.shape[0]) if state is None else state
        state = state._replace(step=bounded(state.step, math.lcm(*filter(None, self.config.cms.periods))))
        if isinstance(state.step, np.integer) and state.step == 0:
            return self._chunks(tokens, state, reset)
        if tokens.shape[1] == 1:
            return self._token(tokens, state, reset)

        def from_chunk_start() -> Any:
            return self._chunks(tokens, self._finish_chunk(state, tokens[:, 0]), reset)

        if aligned and tokens.shape[1] % self.chunk == 0:
            return from_chunk_start()
        return lax.cond(state.step % self.chunk == 0, from_chunk_start, lambda: self._tokens(tokens, state, reset))

    def _chunks(self, tokens: Array, state: InnerState, reset: Array | None) -> Any:
        """Read from a chunk's start: full chunks with their updates, then the remaining 1 to C tokens without."""
        (B, T), C = tokens.shape, self.chunk
        count = (T - 1) // C

        def cut(x: Array) -> Array:  # [B, T] -> [count, B, C]
            return x[:, : count * C].reshape(B, count, C).swapaxes(0, 1)

        @jax.checkpoint
        def body(carry: tuple[LMState, Levels, Array], xs: Any) -> Any:
            (now, sums, step), (x, targets, reset) = carry, xs
            now, sums = self._reset(now, sums, reset)
            gradient, (logits, now, info) = self._gradient(now, x, targets, reset)
            now, sums = self._write(now, sums, gradient, step + C)
            return (now, sums, step + C), (logits, info)

        carry = state.now, state.sums, jnp.asarray(state.step)
        parts = []
        if count:
            xs = cut(tokens), cut(tokens[:, 1:]), None if reset is None else cut(reset)
            carry, (logits, info) = lax.scan(body, carry, xs)
            parts = [(_joined(logits, 1), jax.tree.map(lambda x: _joined(x, -1), info))]
        (now, sums, step), rest = carry, tokens[:, count * C :]
        rest_reset = None if reset is None else reset[:, count * C :]
        chunk_start, sums = self._reset(now, sums, rest_reset)
        logits, now, info = super().__call__(rest, chunk_start, rest_reset)
        parts.append((logits, info))
        read = lax.dynamic_update_slice(jnp.zeros_like(state.read), rest.astype(jnp.int32), (0, 0))
        logits = jnp.concatenate([logits for logits, _ in parts], 1)
        info = jax.tree.map(lambda *x: jnp.concatenate(x, -1), *(info for _, info in parts))
        reset_at_start = jnp.zeros_like(state.reset_at_start) if rest_reset is None else rest_reset[:, 0]
        return logits, InnerState(now, chunk_start, read, reset_at_start, sums, step + rest.shape[1]), info

    def _tokens(self, tokens: Array, state: InnerState, reset: Array | None) -> Any:
        """Token by token."""

        def body(state: InnerState, xs: Any) -> Any:
            token, reset = xs
            logits, state, info = self._token(token[:, None], state, None if reset is None else reset[:, None])
            return state, (logits, info)

        state, (logits, info) = lax.scan(body, state, (tokens.T, None if reset is None else reset.T))
        return _joined(logits, 1), state, jax.tree.map(lambda x: _joined(x, -1), info)

    def _token(self, token: Array, state: InnerState, reset: Array | None) -> Any:
        """Read one token [B, 1]; the first token of a chunk is the last target of the chunk before it."""
        state = self._finish_chunk(state, token[:, 0])
        row = state.step % self.chunk
        reset_at_start = jnp.zeros_like(state.reset_at_start)
        if reset is not None:
            now, sums = self._reset(state.now, state.sums, reset & (row == 0))
            state, reset_at_start = state._replace(now=now, sums=sums), reset[:, 0]
        reset_at_start = jnp.where(row == 0, reset_at_start, state.reset_at_start)
        chunk_start = select(row == 0, state.now, state.chunk_start)
        logits, now, info = super().__call__(token, state.now, reset)
        read = lax.dynamic_update_slice(state.read, token.astype(jnp.int32), (0, row))
        return logits, InnerState(now, chunk_start, read, reset_at_start, state.sums, state.step + 1), info

    def _finish_chunk(self, state: InnerState, token: Array) -> InnerState:
        """If the state is at a chunk's end, update by the chunk's loss. token: [B], the chunk's last target."""

        def write(state: InnerState) -> InnerState:
            targets = jnp.concatenate([state.read[:, 1:], token[:, None].astype(jnp.int32)], 1)
            reset = jnp.pad(state.reset_at_start[:, None], [(0, 0), (0, self.chunk - 1)])
            gradient, _ = self._gradient(state.chunk_start, state.read, targets, reset)
            now, sums = self._write(state.now, state.sums, gradient, jnp.asarray(state.step))
            return state._replace(now=now, sums=sums)

        state = state._replace(step=jnp.asarray(state.step))
        return lax.cond((state.step > 0) & (state.step % self.chunk == 0), write, lambda state: state, state)

    def _gradient(self, chunk_start: LMState, tokens: Array, targets: Array, reset: Array | None) -> tuple[Levels, Any]:
        """The gradient of a chunk's loss by each sequence's kernels, and (logits, state, info) of the chunk."""

        def loss(levels: Levels) -> tuple[Array, Any]:
            state = chunk_start._replace(blocks=with_kernels(chunk_start.blocks, levels))
            logits, after, info = super(InnerLoop, self).__call__(tokens, state, reset)
            is_target = targets[..., None] == jnp.arange(logits.shape[-1])
            nll = jax.nn.logsumexp(logits, -1) - jnp.where(is_target, logits, 0).sum(-1)
            return nll.sum(), (logits, after, info)

        return jax.grad(loss, has_aux=True)(kernels_of(chunk_start.blocks))

    def _write(self, now: LMState, sums: Levels, gradient: Levels, step: Array) -> tuple[LMState, Levels]:
        """Add the gradient to the sums, and update the levels whose period ends at `step`."""
        c = self.config.cms
        if c.first_order:
            gradient = lax.stop_gradient(gradient)
        sums = jax.tree.map(jnp.add, sums, gradient)
        levels, sums = list(kernels_of(now.blocks)), list(sums)
        first = kernels_of(super().init_state(now.age.shape[0]).blocks) if c.variant == "nested" else None
        faster: int | None = None
        for level, period in enumerate(c.periods):
            if not (period and c.rate):
                continue
            due = step % period == 0
            levels[level] = select(due, _descend(levels[level], sums[level], c.rate, c.clip), levels[level])
            sums[level] = select(due, jax.tree.map(jnp.zeros_like, sums[level]), sums[level])
            if first is not None and faster is not None:
                levels[faster] = select(due, first[faster], levels[faster])
            faster = level
        return now._replace(blocks=with_kernels(now.blocks, levels)), sums

    def _reset(self, now: LMState, sums: Levels, reset: Array | None) -> tuple[LMState, Levels]:
        """Reset kernels to the parameters and sums to zero where a document starts with the chunk."""
        if reset is None:
            return now, sums
        first = kernels_of(super().init_state(now.age.shape[0]).blocks)
        starts = reset[:, 0][:, None, None]
        levels = select(starts, first, kernels_of(now.blocks))
        sums = select(starts, jax.tree.map(jnp.zeros_like, sums), sums)
        return now._replace(blocks=with_kernels(now.blocks, levels)), sums


def _descend(weights: list[Weights], gradient: list[Weights], rate: float, clip: float | None) -> list[Weights]:
    """A gradient step of a level's kernels [layers, B, in, out]: clipped by sequence, none if it is not finite."""
    norm = sequence_norm(gradient)
    finite = jnp.isfinite(norm)
    scale = 1.0 if clip is None else jnp.minimum(1.0, clip / jnp.where(finite, norm, 1.0))
    scale = (rate * jnp.where(finite, scale, 0.0))[:, None, None]
    return jax.tree.map(lambda w, g: w - scale * jnp.where(finite[:, None, None], g, 0.0), weights, gradient)


def _joined(x: Array, axis: int) -> Array:
    """Concatenate parts [n, ...] along an axis of each part."""
    axis %= x.ndim - 1
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
