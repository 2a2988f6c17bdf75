"""A learner's recurrence unrolled over a chunk: how its start and every gradient show in each row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from titans_jax.memory.base import Architecture, Gates, Rule


class Response(NamedTuple):
    """A rule unrolled over the rows of a chunk: z_t = start_t z_0 + sum_j steps_tj g_j.

    start: [b, n, n]. steps: [b, n, c-1 + b], zero for gradients to come: of the c-1 tokens before the chunk, which a
    learner with a window takes again, and of its own. For a keep per channel both have a last axis [D].
    """

    start: Array
    steps: Array


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
    """Step the recurrence on unit states and gradients: every product of decays, without a logarithm or a division.

    The products are exact where a gate is zero, and so are their gradients. gates, real, position in chunk: [b].
    """
    F, G = transitions(rule, gates, real, position)
    b, n = G.shape
    c = rule.learner.window
    age = jnp.arange(b)[:, None] + c - 1 - jnp.arange(c - 1 + b)  # of column j at row t
    windows = ((age >= 0) & (age < c)).astype(F.dtype)

    def token(Z: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        F, G, window = xs
        Z = (F[:, :, None] * Z[None]).sum(1) + G[:, None] * window
        return Z, Z

    start = jnp.eye(n, n + c - 1 + b, dtype=F.dtype)
    _, Z = lax.scan(token, start, (F, G, jnp.pad(windows, [(0, 0), (n, 0)])))
    return Response(Z[..., :n], Z[..., n:])
