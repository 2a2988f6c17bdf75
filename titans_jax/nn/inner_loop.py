"""An inner loop over the whole network: layers' networks learn to predict the text while the model reads it.

Level l of every CMS (`nn.cms`) has weights W_l of its own for each sequence. The tokens are read in chunks of the
smallest period C; a chunk's loss is taken with the weights it was read with, and drives the write after it:

    g_l  = sum of the gradients of -log p(x_{t+1} | x_{<=t}) by W_l, through all layers, over the last C_l tokens
    W_l <- W_l - rate g_l min(1, clip / |g_l|)        every C_l tokens (Nested Learning Eq 71; one level is TTT-E2E)

A chunk is complete when it is known what follows it, so its write happens as the next token arrives. Training's
gradient goes through the writes, unless they are of first order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from titans_jax.memory import Weights
from titans_jax.nn import LM, LayerInfo, LMState
from titans_jax.nn.cms import kernels_of, sequence_norm, with_kernels
from titans_jax.nn.model import unstacked

Levels = list[list[Weights]]


class InnerState(NamedTuple):
    """A stream's state. now: the model's, after every token; its kernels are the sequences' own.

    chunk_start: the model's as the chunk began, to take its gradient from. read: [B, C] the chunk's tokens so far.
    reset_at_start: [B] bool, whether a document began with the chunk.
    sums: gradients since each level's last write, as its kernels. step: tokens read, int32 scalar.
    """

    now: LMState
    chunk_start: LMState
    read: Array
    reset_at_start: Array
    sums: Levels
    step: Array | np.int32


class InnerLoop(LM):
    """An `LM` with the same parameters and calls, whose CMS learns inside; at rate 0 it would be that LM.

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
        """The state before the first token. Its step is known while tracing: such a call compiles whole chunks only."""
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
        self, tokens: Array, state: InnerState, reset: Array | None = None, *, aligned: bool = False
    ) -> tuple[Array, InnerState, LayerInfo | None]:
        """As `LM`: any T at any offset. Away from a chunk's start it reads token by token.

        reset: where a document begins, at multiples of every period: its kernels are the parameters again.
        """
        tokens = jnp.asarray(tokens)
        if isinstance(state.step, np.integer) and state.step == 0:
            return self._chunks(tokens, state, reset)
        if tokens.shape[1] == 1:
            return self._token(tokens, state, reset)

        def from_chunk_start() -> Any:
            return self._chunks(tokens, self._settled(state, tokens[:, 0]), reset)

        if aligned and tokens.shape[1] % self.chunk == 0:
            return from_chunk_start()
        return lax.cond(state.step % self.chunk == 0, from_chunk_start, lambda: self._tokens(tokens, state, reset))

    def _chunks(self, tokens: Array, state: InnerState, reset: Array | None) -> Any:
        """From a chunk's start on: whole chunks, each written when read, and what remains, which is not."""
        (B, T), C = tokens.shape, self.chunk
        count = (T - 1) // C

        def cut(x: Array) -> Array:  # [B, T] -> [count, B, C]
            return x[:, : count * C].reshape(B, count, C).swapaxes(0, 1)

        @jax.checkpoint
        def body(carry: tuple[LMState, Levels, Array], xs: Any) -> Any:
            (now, sums, step), (x, following, reset) = carry, xs
            now, sums = self._begin(now, sums, reset)
            gradient, (logits, now, info) = self._gradient(now, x, following, reset)
            now, sums = self._write(now, sums, gradient, step + C)
            return (now, sums, step + C), (logits, info)

        carry = state.now, state.sums, jnp.asarray(state.step)
        parts = []
        if count:
            xs = cut(tokens), cut(tokens[:, 1:]), None if reset is None else cut(reset)
            carry, (logits, info) = lax.scan(body, carry, xs)
            parts = [(_joined(logits, 1), jax.tree.map(lambda x: _joined(x, -1), info))]
        (now, sums, step), rest = carry, tokens[:, count * C :]
        again = None if reset is None else reset[:, count * C :]
        chunk_start, sums = self._begin(now, sums, again)
        logits, now, info = super().__call__(rest, chunk_start, again)
        parts.append((logits, info))
        read = lax.dynamic_update_slice(jnp.zeros_like(state.read), rest.astype(jnp.int32), (0, 0))
        logits = jnp.concatenate([logits for logits, _ in parts], 1)
        info = jax.tree.map(lambda *x: jnp.concatenate(x, -1), *(info for _, info in parts))
        reset_at_start = jnp.zeros_like(state.reset_at_start) if again is None else again[:, 0]
        return logits, InnerState(now, chunk_start, read, reset_at_start, sums, step + rest.shape[1]), info

    def _tokens(self, tokens: Array, state: InnerState, reset: Array | None) -> Any:
        """Token by token."""

        def body(state: InnerState, xs: Any) -> Any:
            token, begins = xs
            logits, state, info = self._token(token[:, None], state, None if begins is None else begins[:, None])
            return state, (logits, info)

        state, (logits, info) = lax.scan(body, state, (tokens.T, None if reset is None else reset.T))
        return _joined(logits, 1), state, jax.tree.map(lambda x: _joined(x, -1), info)

    def _token(self, token: Array, state: InnerState, reset: Array | None) -> Any:
        """One token [B, 1]: it settles the chunk that was complete but for it."""
        state = self._settled(state, token[:, 0])
        at = state.step % self.chunk
        reset_at_start = jnp.zeros_like(state.reset_at_start)
        if reset is not None:
            chunk_start, sums = self._begin(state.now, state.sums, reset & (at == 0))
            state, reset_at_start = state._replace(now=chunk_start, sums=sums), reset[:, 0]
        reset_at_start = jnp.where(at == 0, reset_at_start, state.reset_at_start)
        chunk_start = jax.tree.map(lambda new, old: jnp.where(at == 0, new, old), state.now, state.chunk_start)
        logits, now, info = super().__call__(token, state.now, reset)
        read = lax.dynamic_update_slice(state.read, token.astype(jnp.int32), (0, at))
        return logits, InnerState(now, chunk_start, read, reset_at_start, state.sums, state.step + 1), info

    def _settled(self, state: InnerState, following: Array) -> InnerState:
        """The state with the write of a chunk that was read to its end, before the token `following` [B] it."""

        def write(state: InnerState) -> InnerState:
            targets = jnp.concatenate([state.read[:, 1:], following[:, None].astype(jnp.int32)], 1)
            reset = jnp.pad(state.reset_at_start[:, None], [(0, 0), (0, self.chunk - 1)])
            gradient, _ = self._gradient(state.chunk_start, state.read, targets, reset)
            now, sums = self._write(state.now, state.sums, gradient, jnp.asarray(state.step))
            return state._replace(now=now, sums=sums)

        state = state._replace(step=jnp.asarray(state.step))
        return lax.cond((state.step > 0) & (state.step % self.chunk == 0), write, lambda state: state, state)

    def _gradient(
        self, chunk_start: LMState, tokens: Array, following: Array, reset: Array | None
    ) -> tuple[Levels, Any]:
        """The gradient of a chunk's loss by each sequence's kernels, and what reading the chunk gave."""

        def loss(levels: Levels) -> tuple[Array, Any]:
            state = chunk_start._replace(blocks=with_kernels(chunk_start.blocks, levels))
            logits, after, info = super(InnerLoop, self).__call__(tokens, state, reset)
            chosen = following[..., None] == jnp.arange(logits.shape[-1])
            nll = jax.nn.logsumexp(logits, -1) - jnp.where(chosen, logits, 0).sum(-1)
            return nll.sum(), (logits, after, info)

        return jax.grad(loss, has_aux=True)(kernels_of(chunk_start.blocks))

    def _write(self, now: LMState, sums: Levels, gradient: Levels, step: Array) -> tuple[LMState, Levels]:
        """Write the levels whose period ends at `step`."""
        c = self.config.cms
        if c.first_order:
            gradient = lax.stop_gradient(gradient)
        sums = jax.tree.map(jnp.add, sums, gradient)
        levels, sums = list(kernels_of(now.blocks)), list(sums)
        first = kernels_of(super().init_state(now.age.shape[0]).blocks) if c.variant == "nested" else None
        faster: int | None = None
        for level, period in enumerate(c.periods):
            if not (period and c.rate):  # without kernels of its own
                continue
            due = step % period == 0
            levels[level] = _select(due, _descend(levels[level], sums[level], c.rate, c.clip), levels[level])
            sums[level] = _select(due, jax.tree.map(jnp.zeros_like, sums[level]), sums[level])
            if first is not None and faster is not None:
                levels[faster] = _select(due, first[faster], levels[faster])
            faster = level
        return now._replace(blocks=with_kernels(now.blocks, levels)), sums

    def _begin(self, now: LMState, sums: Levels, reset: Array | None) -> tuple[LMState, Levels]:
        """Where a document begins with the chunk, the parameters and no sums."""
        if reset is None:
            return now, sums
        first = kernels_of(super().init_state(now.age.shape[0]).blocks)
        here = reset[:, 0][:, None, None]
        levels = _select(here, first, kernels_of(now.blocks))
        return now._replace(blocks=with_kernels(now.blocks, levels)), _select(
            here, jax.tree.map(jnp.zeros_like, sums), sums
        )


def _descend(weights: list[Weights], gradient: list[Weights], rate: float, clip: float | None) -> list[Weights]:
    """One step of each sequence's kernels [layers, B, in, out] of a level, by a gradient of norm `clip` at most."""
    size = sequence_norm(gradient)
    finite = jnp.isfinite(size)
    scale = 1.0 if clip is None else jnp.minimum(1.0, clip / jnp.where(finite, size, 1.0))
    scale = (rate * jnp.where(finite, scale, 0.0))[:, None, None]
    return jax.tree.map(lambda w, g: w - scale * jnp.where(finite[:, None, None], g, 0.0), weights, gradient)


def _select(condition: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def _joined(x: Array, axis: int) -> Array:
    """Parts [n, ...] one after the other along an axis of each."""
    axis %= x.ndim - 1
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
