"""A learner's recurrence unrolled over a chunk: how its start and every gradient show in each row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.base import Architecture, Gates, Rule


class Response(NamedTuple):
    """A rule unrolled over the rows of a chunk: z_t = start_t z_0 + sum_j steps_tj g_j, of what is ever looked at.

    That is the dual at every row, start [b, n] and steps [b, c-1 + b], and every component after the last row,
    last_start [n, n] and last_steps [n, c-1 + b]. steps is zero for gradients to come: of the c-1 tokens before the
    chunk, which a learner with a window takes again, and of its own. For a keep per channel all have a last axis [D].
    """

    start: Array
    steps: Array
    last_start: Array
    last_steps: Array


class Responses(NamedTuple):
    """The unrolled recurrence of a memory: for one decay, and where keep is per channel, for every channel [..., D]."""

    scalar: Response
    channel: Response | None

    def of(self, architecture: Architecture, name: str) -> tuple[str | None, Response]:
        """The axis on which the weight `name` decays by channel, or None, and its response."""
        axis = architecture.channels.get(name)
        return (None, self.scalar) if axis is None or self.channel is None else (axis, self.channel)


def responses(rule: Rule, gates: Gates, real: Array, position: Array) -> Responses:
    """Unroll for every decay there is: keep [b], or [b, D] per channel (its mean where a weight has no channel)."""
    if gates.keep.ndim == 1:
        return Responses(unroll(rule, gates, real, position), None)

    def channel(keep: Array) -> Response:
        return unroll(rule, gates._replace(keep=keep), real, position)

    return Responses(channel(gates.keep.mean(-1)), jax.vmap(channel, in_axes=1, out_axes=-1)(gates.keep))


def transitions(rule: Rule, gates: Gates, real: Array, position: Array) -> tuple[Array, Array]:
    """F [b, n, n] and G [b, n] of every row; a row that is not a token is the identity."""
    F, G = jax.vmap(rule.learner.transition)(gates, position)
    if rule.retention.home:  # one more component, which stays, and has what the dual loses of itself
        n = F.shape[-1]
        F = jnp.pad(F, [(0, 0), (0, 1), (0, 1)]).at[:, 0, n].set(1 - F[:, 0, 0]).at[:, n, n].set(1)
        G = jnp.pad(G, [(0, 0), (0, 1)])
    if rule.retention.carries_weights:  # the dual moves as the weights do, from where it stands itself
        n = F.shape[-1]
        F = jnp.pad(F, [(0, 0), (0, 1), (0, 1)]).at[:, n, 1:n].set(F[:, 0, 1:]).at[:, n, n].set(F[:, 0, 0])
        G = jnp.pad(G, [(0, 0), (0, 1)]).at[:, n].set(G[:, 0])
    return jnp.where(real[:, None, None], F, jnp.eye(F.shape[-1], dtype=F.dtype)), jnp.where(real[:, None], G, 0)


def unroll(rule: Rule, gates: Gates, real: Array, position: Array) -> Response:
    """The recurrence on unit states and gradients: every product of decays, without a logarithm or a division.

    The products are exact where a gate is zero, and so are their gradients. gates, real, position in chunk: [b].
    Rows are joined two by two, then blocks of two: what a block does is its Z [rows, n, n + columns], of every row the
    answer to the state before the block (n columns) and to its gradients, and a second block begins with the last
    row of the first.
    """
    F, G = transitions(rule, gates, real, position)
    b, n = G.shape
    size, c = 1 << (b - 1).bit_length(), rule.learner.window
    F = jnp.concatenate([F, jnp.broadcast_to(jnp.eye(n, dtype=F.dtype), (size - b, n, n))])
    last = jnp.concatenate([F, jnp.pad(jnp.repeat(G[:, :, None], c, 2), [(0, size - b), (0, 0), (0, 0)])], -1)
    dual = last[:, :1]
    while len(last) > 1:
        rows = dual.shape[1]

        def begun(second: Array, first: Array = last[::2], rows: int = rows) -> Array:
            """The rows of second blocks, with all that the first ones did."""
            before = jnp.pad(second[..., :n] @ first, [(0, 0), (0, 0), (0, rows)])
            return before + jnp.pad(second[..., n:], [(0, 0), (0, 0), (n + rows, 0)])

        dual = jnp.concatenate([jnp.pad(dual[::2], [(0, 0), (0, 0), (0, rows)]), begun(dual[1::2])], 1)
        last = begun(last[1::2])
    dual, last = dual[0, :b, : n + c - 1 + b], last[0, :, : n + c - 1 + b]
    return Response(dual[:, :n], dual[:, n:], last[:, :n], last[:, n:])
