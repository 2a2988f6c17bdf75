"""A learner's recurrence unrolled over a chunk: how its start and every gradient show in each row."""

import functools
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
    Z = _unit_response(rule.learner.window, *transitions(rule, gates, real, position))
    n = Z.shape[1]
    return Response(Z[..., :n], Z[..., n:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unit_response(window: int, F: Array, G: Array) -> Array:
    """Z_t = F_t Z_{t-1} + G_t e_t, [b, n, n + window-1 + b], from Z_0 = (I, 0); e_t marks the columns of t's window.

    Its own backward, as autodiff would take the gradients by F and G inside the loop: P_t = dZ_t + F_{t+1}^T P_{t+1}.
    """

    def token(Z: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        F, G, marks = xs
        Z = _product(F, Z) + G[:, None] * marks
        return Z, Z

    return lax.scan(token, _unit(F, window), (F, G, _marks(F, window)))[1]


def _unit_response_forward(window: int, F: Array, G: Array) -> tuple[Array, tuple[Array, Array]]:
    Z = _unit_response(window, F, G)
    return Z, (F, Z)


def _unit_response_backward(window: int, kept: tuple[Array, Array], dZ: Array) -> tuple[Array, Array]:
    F, Z = kept

    def token(P: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        F, dZ = xs
        P = P + dZ
        return _product(F.T, P), P

    P = lax.scan(token, jnp.zeros_like(dZ[0]), (F, dZ), reverse=True)[1]
    before = jnp.concatenate([_unit(F, window)[None], Z[:-1]])
    dF = (P[:, :, None] * before[:, None]).sum(-1)
    return dF, (P * _marks(F, window)[:, None]).sum(-1)


_unit_response.defvjp(_unit_response_forward, _unit_response_backward)


def _product(F: Array, Z: Array) -> Array:
    """F Z, written out: for these few rows a matmul would cost more than it computes."""
    return sum(F[:, j, None] * Z[j] for j in range(len(F)))  # type: ignore[return-value]


def _unit(F: Array, window: int) -> Array:
    b, n, _ = F.shape
    return jnp.eye(n, n + window - 1 + b, dtype=F.dtype)


def _marks(F: Array, window: int) -> Array:
    """[b, n + window-1 + b]: which columns row t adds its gradient to."""
    b, n, _ = F.shape
    age = jnp.arange(b)[:, None] + window - 1 - jnp.arange(window - 1 + b)  # of column j at row t
    return jnp.pad(((age >= 0) & (age < window)).astype(F.dtype), [(0, 0), (n, 0)])
