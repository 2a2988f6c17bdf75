"""A learner's step as coefficients, and their products over a chunk.

A step is linear in z = (A, S, ...) and g, so z_t = F_t z_{t-1} + G_t g_t, and its columns are its values at unit
vectors. Unrolled over a chunk: z_t = initial_weight_t z_0 + sum_{j<=t} grad_weight_tj g_j. All of it depends on the
gates alone, never on the tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import Architecture, Gates, Learner


class Unrolled(NamedTuple):
    """z_t = initial_weight_t z_0 + sum_j grad_weight_tj g_j: the dual at every row, all of z after the last row.

    initial_weight: [b, n]. grad_weight: [b, c-1 + b], zero for later gradients; the first c-1 columns are the window's
    tokens. last_initial: [n, n]. last_grad: [n, c-1 + b]. With a keep per channel, each has a last axis [D].
    """

    initial_weight: Array
    grad_weight: Array
    last_initial: Array
    last_grad: Array

    def before(self, grad_at: str) -> "Unrolled":
        """The same, without row t's own gradient: of z_{t-1}, or of z_{t-1} "decayed" by row t's step."""
        initial, grads = self.initial_weight, self.grad_weight
        if grad_at == "decayed":
            b = len(grads)
            own = jnp.eye(b, dtype=grads.dtype).reshape(b, b, *[1] * (grads.ndim - 2))
            return self._replace(grad_weight=grads * (1 - own))
        first = jnp.zeros_like(initial[:1]).at[:, 0].set(1)
        initial = jnp.concatenate([first, initial[:-1]])
        return self._replace(
            initial_weight=initial, grad_weight=jnp.concatenate([jnp.zeros_like(grads[:1]), grads[:-1]])
        )


class Coefficients(NamedTuple):
    """The unrolled steps of a chunk: for a scalar keep, and for every channel [..., D] where keep is per channel."""

    scalar: Unrolled
    channel: Unrolled | None

    def of(self, architecture: Architecture, name: str) -> tuple[str | None, Unrolled]:
        """The axis of the weight `name` on which its channels decay, or None, and its coefficients."""
        axis = architecture.channels.get(name)
        return (None, self.scalar) if axis is None or self.channel is None else (axis, self.channel)


def coefficients(learner: Learner, gates: Gates, valid: Array | None) -> Coefficients:
    """Unroll one chunk. gates: [b], keep [b] or [b, D]; weights without a channel axis use keep's mean."""
    if gates.keep.ndim == 1:
        return Coefficients(unroll(learner, gates, valid), None)

    def channel(keep: Array) -> Unrolled:
        return unroll(learner, gates._replace(keep=keep), valid)

    return Coefficients(channel(gates.keep.mean(-1)), jax.vmap(channel, in_axes=1, out_axes=-1)(gates.keep))


def linearise(learner: Learner, gates: Gates) -> tuple[Array, Array]:
    """F [b, n, n], G [b, n] of a learner's step at every row of a chunk. gates: [b]."""
    n, position = 1 + learner.traces, jnp.arange(len(gates.rate))

    def column(unit: Array) -> Array:
        z = learner.step(tuple(unit[:n]), unit[n], gates, position)
        return jnp.stack([jnp.broadcast_to(x, position.shape) for x in z], -1)

    columns = jax.vmap(column, out_axes=-1)(jnp.eye(n + 1, dtype=gates.rate.dtype))
    return columns[..., :n], columns[..., n]


def unroll(learner: Learner, gates: Gates, valid: Array | None) -> Unrolled:
    """Multiply the steps of a chunk, without a logarithm or a division. gates: [b]; valid: None or [b] bool.

    Products are exact where a gate is zero, and so are their gradients. A row that is not valid is the identity.
    Neighbouring blocks of rows are joined until one is left: the second block starts from the last row of the first.
    """
    F, G = linearise(learner, gates)
    b, n = G.shape
    if valid is not None:
        F = jnp.where(valid[:, None, None], F, jnp.eye(n, dtype=F.dtype))
        G = jnp.where(valid[:, None], G, 0)
    size, c = 1 << (b - 1).bit_length(), learner.window
    F = jnp.concatenate([F, jnp.broadcast_to(jnp.eye(n, dtype=F.dtype), (size - b, n, n))])
    last = jnp.concatenate([F, jnp.pad(jnp.repeat(G[:, :, None], c, 2), [(0, size - b), (0, 0), (0, 0)])], -1)
    dual = last[:, :1]
    while len(last) > 1:
        rows = dual.shape[1]

        def joined(second: Array, first: Array = last[::2], rows: int = rows) -> Array:
            """The rows of second blocks, as functions of what precedes the first blocks."""
            before = jnp.pad(second[..., :n] @ first, [(0, 0), (0, 0), (0, rows)])
            return before + jnp.pad(second[..., n:], [(0, 0), (0, 0), (n + rows, 0)])

        dual = jnp.concatenate([jnp.pad(dual[::2], [(0, 0), (0, 0), (0, rows)]), joined(dual[1::2])], 1)
        last = joined(last[1::2])
    dual, last = dual[0, :b, : n + c - 1 + b], last[0, :, : n + c - 1 + b]
    return Unrolled(dual[:, :n], dual[:, n:], last[:, :n], last[:, n:])
