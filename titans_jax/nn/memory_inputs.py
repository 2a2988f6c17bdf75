"""The inputs of a memory: query, key, value and gates of each token."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from titans_jax.memory import Gates
from titans_jax.nn.config import MemoryConfig, ModelConfig, max_rate_of, rule_of
from titans_jax.nn.layers import Conv, Linear, Valid, logit, param, split_heads


class QKV(nnx.Module):
    """q, k, v = SiLU(conv(x W)) (Titans section 4.4), with one k and v for each write of a token.

    Queries and keys start with one projection and one convolution, that of keys a token later: k_{t+1} is close to q_t.
    So a value is stored under the tokens before it, and an untrained memory is an induction head.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        c = config.memory
        self.heads, self.head_dim, self.dtype = c.heads, c.head_dim, config.dtype
        self.writes = rule_of(c).learner.writes_per_token
        channels = (1 + 2 * self.writes) * c.heads * c.head_dim
        self.linear = Linear(config.dim, channels, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        by_head = self.linear.kernel[...].reshape(config.dim, c.heads, -1)
        query = by_head[..., : c.head_dim]
        by_head = by_head.at[..., c.head_dim : 2 * c.head_dim].set(query)
        self.linear.kernel[...] = by_head.reshape(config.dim, channels)
        self.conv = Conv(c.conv, channels, _taps(rngs.params(), c, self.writes)) if c.conv else None

    def init_state(self, batch: int) -> Array | None:
        """The convolution's inputs before the first token."""
        return self.conv.init_state(batch, self.dtype) if self.conv else None

    def __call__(
        self, x: Array, conv: Array | None, age: Array, valid: Valid | None = None
    ) -> tuple[tuple[Array, Array, Array], Array | None]:
        """Project x.

        Args:
          x: [B, T, E].
          conv: the convolution's state, or None.
          age: [B, T].
          valid: None, or [T] bool.

        Returns:
          q, k, v [B, H, T, D] (k, v [B, H, T, writes, D] if there are several), and the convolution's state.
        """
        qkv = self.linear(x)
        if self.conv is not None:
            assert conv is not None, "the state lacks the convolution's inputs"
            qkv, conv = self.conv(qkv, conv, age, valid)
        q, k, v = jnp.split(
            split_heads(jax.nn.silu(qkv), self.heads), [self.head_dim, (1 + self.writes) * self.head_dim], -1
        )
        if self.writes > 1:
            k, v = (x.reshape(*x.shape[:-1], self.writes, self.head_dim) for x in (k, v))
        return (q, k, v), conv


def _taps(random: Array, config: MemoryConfig, writes: int) -> Array:
    """The convolution's taps [width, channels] at the start, channels as `linear` has them.

    Queries are a random mix of the last width - 1 tokens, of the same variance; keys the same mix one token earlier,
    and a tenth of the token itself, without which a text's first key would be zeros; values the token itself.
    """
    shape = (config.conv, config.heads, config.head_dim)
    identity = jnp.zeros(shape).at[0].set(1.0)
    query = key = identity
    if config.conv > 1:
        mix = jax.random.normal(random, (config.conv - 1, *shape[1:]))
        mix, none = mix / jnp.linalg.norm(mix, axis=0), jnp.zeros((1, *shape[1:]))
        query, key = jnp.concatenate([mix, none]), jnp.concatenate([0.1 * mix[:1], mix])
    return jnp.concatenate([query, *[key] * writes, *[identity] * writes], -1).reshape(config.conv, -1)


class WriteGates(nnx.Module):
    """The gates of each token and head, in float32; see `presets.GateStyle`.

    Data-dependent gates are sigmoid(x W + b). A "fixed" keep is 1 - 2^(-5-h) for head h, as in RetNet. On a mesh each
    device has the whole of a W of one column per head: it is small, and gathering it has a latency.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        c, rule = config.memory, rule_of(config.memory)
        self.config = c
        self.max_rate = max_rate_of(c)
        self.writes = rule.learner.writes_per_token
        gate = functools.partial(Linear, config.dim, axes=(None, None), scale=0.1, rngs=rngs)
        channels = {"scalar": c.heads, "channel": c.heads * c.head_dim}.get(c.gates.keep)
        by_keep = ("embed", None) if c.per_channel else (None, None)
        self.rate = gate(c.heads * self.writes, bias=0.0) if c.gates.rate == "gated" else None
        self.momentum = gate(c.heads, bias=logit(c.momentum))
        self.keep = gate(channels, bias=logit(1 - c.forget), axes=by_keep) if channels else None
        # keep = exp(-a rate) starts at 1 - forget, since rates start at half of max_rate
        first = jnp.full(c.heads, math.log(-2 * math.log1p(-c.forget) / self.max_rate))
        self.log_decay = param(first, "heads") if c.gates.keep == "tied" else None
        self.weight = gate(c.heads, bias=logit(0.9)) if rule.learner.window > 1 else None
        self.threshold = gate(c.heads, bias=c.head_dim**0.5) if rule.bias.threshold else None

    def __call__(self, x: Array) -> Gates:
        """The gates of x [B, T, E].

        Each is [B, H, T]; keep is [B, H, T, D] if per channel, rate [B, H, T, writes] if there are several writes.
        """
        x = x.astype(jnp.float32)

        def gated(gate: Linear, vector: bool = False) -> Array:
            out = split_heads(jax.nn.sigmoid(gate(x)), self.config.heads)
            return out if vector else out[..., 0]

        threshold = None
        if self.threshold is not None:
            threshold = split_heads(jax.nn.softplus(self.threshold(x)), self.config.heads)[..., 0]
        momentum = gated(self.momentum)
        rate = self.max_rate * (
            jnp.ones_like(momentum) if self.rate is None else gated(self.rate, vector=self.writes > 1)
        )
        if self.keep is not None:
            keep = gated(self.keep, vector=self.config.per_channel)
        elif self.log_decay is not None:
            keep = jnp.exp(-jnp.exp(self.log_decay[...])[:, None] * rate)
        else:
            keep = jnp.broadcast_to(1 - 2.0 ** (-5 - jnp.arange(self.config.heads))[:, None], momentum.shape)
        return Gates(
            rate=rate,
            momentum=momentum,
            keep=keep,
            threshold=threshold,
            weight=None if self.weight is None else gated(self.weight),
        )
