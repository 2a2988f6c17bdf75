"""A neural memory as a layer: projections, gates, a memory a head, and the way back to the model's width."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from titans_jax import sharding
from titans_jax.memory import Gates, Info, Memory, Restart, Rule, Span, State, Weights, begin, unit_rate
from titans_jax.memory.base import state_axes
from titans_jax.memory.scan import covers
from titans_jax.memory.tnt import first_weights as tnt_weights
from titans_jax.nn.config import MemoryConfig, ModelConfig, memory_of, rule_of
from titans_jax.nn.layers import Conv, Linear, RMSNorm, by_head, l2_normalise, logit, merged, param
from titans_jax.sharding import ROWS


class MemoryState(NamedTuple):
    """memory: a `State` of leaves [B, H, ...], its step a scalar. conv: the convolution's last inputs, or None."""

    memory: State
    conv: Array | None


class Look(NamedTuple):
    """What there is to see of a memory layer, each [B, H, T]: `memory.Info` and gates (keep as its channels' mean)."""

    surprise: Array
    grad_norm: Array
    momentum_norm: Array
    weight_norm: Array
    clipped: Array
    rate: Array
    momentum: Array
    keep: Array


def over(kind: Callable[..., Any], *fields: Any) -> Any:
    """A `kind` that holds, in place of arrays, logical axes for all that lies under each field."""
    return kind(*fields)


STATE_AXES = state_axes(0)
STATES, FRESH = (state_axes(rows, ()) for rows in (ROWS, ROWS[1:]))  # of all sequences, and of a beginning


class MemoryLayer(nnx.Module):
    """y = W_O(RMSNorm(M_t(q_t)) * silu(x W_g)), M_t written with (k_t, v_t) under data-dependent gates.

    q, k, v = SiLU(conv(x W)), q and k l2-normalised (Titans section 4.4). The memory's initial weights are parameters,
    in the retention's coordinates, where every number will do.
    With persistent tokens, a stream's memory has read them before it begins (Titans Eq 28-29).
    """

    def __init__(self, config: ModelConfig, *, persistent: int = 0, rngs: nnx.Rngs) -> None:
        c = config.memory
        self.config, self.dtype = c, config.dtype
        self.max_rate = c.max_rate * unit_rate(self.rule, c.chunk, c.momentum)
        size = c.heads * c.head_dim
        writes = self.rule.learner.writes  # keys and values a token
        qkv = (1 + 2 * writes) * size
        self.qkv = Linear(config.dim, qkv, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        self.conv = Conv(c.conv, qkv) if c.conv else None
        gate = functools.partial(Linear, config.dim, axes=("embed", None), scale=0.1, rngs=rngs)
        self.rate = gate(c.heads * writes, bias=0.0)
        self.momentum = gate(c.heads, bias=logit(c.momentum))
        self.keep = gate(size if c.per_channel else c.heads, bias=logit(1 - c.forget))
        self.weight = gate(c.heads, bias=logit(0.9)) if self.rule.learner.window > 1 else None
        self.norm = RMSNorm(c.head_dim)
        self.gate = Linear(config.dim, size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        scale = (2 * config.depth) ** -0.5
        self.out = Linear(size, config.dim, ("heads", "embed"), dtype=config.dtype, scale=scale, rngs=rngs)
        self.threshold = gate(c.heads, bias=c.head_dim**0.5) if self.rule.bias.threshold else None
        fast = jax.vmap(functools.partial(_first_weights, c))(jax.random.split(rngs.params(), c.heads))
        self.fast = nnx.Dict({name: param(w, "heads", None, None) for name, w in fast.items()})
        tokens = jax.random.normal(rngs.params(), (persistent, config.dim))
        self.persistent = param(tokens, None, None) if persistent else None

    @property
    def rule(self) -> Rule:
        """What the configuration names; not held, since a module's static parts must be hashable."""
        return rule_of(self.config)

    @property
    def memory(self) -> Memory:
        """The pure functions of one sequence and one head."""
        return memory_of(self.config)

    def initial(self) -> Weights:
        """The learned weights [H, in, out], as duals, with which every stream begins."""
        return {name: w[...] for name, w in self.fast.items()}

    def init_state(self, batch: int) -> MemoryState:
        """Every sequence's memory as the persistent tokens leave it, at the beginning of a chunk."""
        start = self.memory.init if self.config.local_chunks else functools.partial(begin, self.rule)
        heads = jax.vmap(start, out_axes=STATE_AXES)
        memory = jax.vmap(heads, in_axes=None, out_axes=STATE_AXES, axis_size=1)(self.initial())
        state = MemoryState(memory, self.conv.init_state(1, self.dtype) if self.conv else None)
        if self.persistent is not None:
            count, chunk = self.persistent.shape[0], self.config.chunk
            rows = -(-count // chunk) * chunk  # on the grid of chunks: the call need not be shifted
            tokens = jnp.pad(self.persistent[...], [(0, rows - count), (0, 0)])[None].astype(self.dtype)
            _, state, _, _ = self.write(tokens, state, jnp.arange(rows)[None], span=Span(0, count))
            begun = state.memory
            memory = begun._replace(
                anchor=begun.dual,
                step=jnp.zeros((), jnp.int32),
                home=None if begun.home is None else begun.dual,
                weights=None if begun.weights is None else self.rule.retention.link(begun.dual),
            )
            state = state._replace(memory=memory)

        memory = jax.tree.map(lambda x: spread(x, batch, *ROWS) if x.ndim else x, state.memory)
        return MemoryState(memory, None if state.conv is None else spread(state.conv, batch, "batch", None, "heads"))

    def heads(self, x: Array) -> Array:
        """[B, T, H D] -> [B, H, T, D]."""
        return by_head(x, self.config.heads)

    def gates(self, x: Array) -> Gates:
        """Gates [B, H, T] in float32 whatever x is, keep [B, H, T, D] where it is per channel, rate [B, H, T, writes]
        where there are several."""
        x = x.astype(jnp.float32)

        def squashed(gate: Linear, several: bool = False) -> Array:
            out = self.heads(jax.nn.sigmoid(gate(x)))
            return out if several else out[..., 0]

        return Gates(
            rate=self.max_rate * squashed(self.rate, several=self.rule.learner.writes > 1),
            momentum=squashed(self.momentum),
            keep=squashed(self.keep, several=self.config.per_channel),
            threshold=None if self.threshold is None else self.heads(jax.nn.softplus(self.threshold(x)))[..., 0],
            weight=None if self.weight is None else squashed(self.weight),
        )

    def hold_back(self, gates: Gates, state: State, k: Array, v: Array) -> Gates:
        """The gates with which tokens k, v are written to a memory in `state`: here as they are."""
        return gates

    def __call__(
        self,
        x: Array,
        state: MemoryState,
        age: Array,
        *,
        span: Span | None = None,
        reset: Array | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, MemoryState, Look, Weights | None]:
        """Write and read x [B, T, E]; the arguments are those of `write`.

        Returns y, state, what there is to see, and with a residual this memory's own.
        """
        reads, state, look, learned = self.write(x, state, age, span=span, reset=reset, residual=residual)
        return self.say(x, reads), state, look, learned

    def write(
        self,
        x: Array,
        state: MemoryState,
        age: Array,
        *,
        span: Span | None = None,
        reset: Array | None = None,
        residual: Weights | None = None,
    ) -> tuple[Array, MemoryState, Look, Weights | None]:
        """Write x [B, T, E], and read after each token: what a stream must do in order.

        age: [B, T]. span: which rows are tokens. reset: [B, T] bool, where the memory begins anew (at a chunk's
        start). residual: [B, H, chunks, in, out], what the memory below has learned. Returns reads [B, H, T, D], and
        the rest as a call does.
        """
        (q, k, v), conv = self.project(x, state.conv, age, span)
        q, k = l2_normalise(q), l2_normalise(k)
        gates = self.hold_back(self.gates(x), state.memory, k, v)
        reads, memory, info = self._update(state.memory, (q, k, v, gates), span, reset, residual)
        rate, keep = (gate.mean(-1) if gate.ndim == 4 else gate for gate in (gates.rate, gates.keep))
        look = Look(*info[:5], rate, gates.momentum, keep)
        learned = None
        if residual is not None:
            begun = self.rule.retention.link(self.initial())
            learned = jax.tree.map(lambda anchor, w: anchor - w[:, None], info.anchors, begun)
        return reads, MemoryState(memory, conv), look, learned

    def say(self, x: Array, reads: Array) -> Array:
        """W_O(RMSNorm(reads) * silu(x W_g)), of each token alone. x: [B, T, E]; reads: [B, H, T, D] -> [B, T, E]."""
        return self.out(self.merge(reads) * jax.nn.silu(self.gate(x)))

    def project(
        self, x: Array, conv: Array | None, age: Array, span: Span | None = None
    ) -> tuple[tuple[Array, Array, Array], Array | None]:
        """q, k, v of x [B, T, E] as `split` has them, not yet normalised, and the convolution's last inputs."""
        qkv = self.qkv(x)
        if self.conv is not None:
            assert conv is not None, "a layer with a convolution makes states with its inputs"
            qkv, conv = self.conv(qkv, conv, age, span)
        return self.split(self.heads(jax.nn.silu(qkv))), conv

    def split(self, qkv: Array) -> tuple[Array, Array, Array]:
        """[B, H, T, (1 + 2 writes) D] -> q [B, H, T, D] and k, v of its shape, or [B, H, T, writes, D] if several."""
        D, writes = self.config.head_dim, self.rule.learner.writes
        q, k, v = jnp.split(qkv, [D, (1 + writes) * D], -1)
        if writes > 1:
            k, v = (x.reshape(*x.shape[:-1], writes, D) for x in (k, v))
        return q, k, v

    def merge(self, y: Array) -> Array:
        """[B, H, T, D] -> [B, T, H D], normalised by head."""
        return merged(self.norm(y))

    def _update(
        self,
        state: State,
        tokens: tuple[Array, Array, Array, Gates],
        span: Span | None,
        reset: Array | None,
        residual: Weights | None,
    ) -> tuple[Array, State, Info]:
        """`memory.update` over batch and heads, of tokens (q, k, v, gates); every sequence is at the same step."""
        begin = None if reset is None else Restart(reset, self.memory_at_start())
        # that a span covers the call stays known on a mesh too, where arguments become arrays
        known = span if span is not None and covers(span, tokens[0].shape[2]) else None

        def one(state: State, tokens: Any, span: Any, begin: Any, residual: Any) -> tuple[Array, State, Info]:
            return self.memory.update(state, *tokens, span=known or span, reset=begin, residual=residual)

        beginning = None if begin is None else over(Restart, ROWS[:1], FRESH)
        arguments = (state, tokens, None if known else span, begin, residual)
        return sharding.by_row(one, arguments, (STATES, ROWS, (), beginning, ROWS), (ROWS, STATES, ROWS))

    def recall(self, weights: Weights, q: Array) -> Array:
        """What memories of these weights [B, H, in, out], as duals, say to q [B, H, T, D], without a write."""

        def read(weights: Weights, q: Array) -> Array:
            return self.memory.read(State(weights, (), weights, jnp.zeros((), jnp.int32)), q)

        return sharding.by_row(read, (weights, q), (ROWS, ROWS), ROWS)

    def memory_at_start(self) -> State:
        """The state [H, ...] of a memory whose document begins."""
        state = self.init_state(1).memory
        return jax.tree.map(lambda x: x[0] if x.ndim else x, state)


class Retrieve(nnx.Module):
    """h = W(RMSNorm(M*(q))), q = l2(SiLU(x W_Q)): a read without a write (Titans Eq 21)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        size = config.memory.heads * config.memory.head_dim
        self.query = Linear(config.dim, size, ("embed", "heads"), dtype=config.dtype, rngs=rngs)
        self.out = Linear(size, config.dim, ("heads", "embed"), dtype=config.dtype, rngs=rngs)

    def __call__(self, q: Array, weights: Weights, layer: MemoryLayer) -> Array:
        """q: [B, T, H D] from `query`; weights: [B, H, in, out] dual of a memory of `layer`. Returns h [B, T, E]."""
        q = l2_normalise(layer.heads(jax.nn.silu(q)))

        return self.out(layer.merge(layer.recall(weights, q)))


def _first_weights(config: MemoryConfig, key: Array) -> Weights:
    rule = rule_of(config)
    if config.local_chunks:
        return tnt_weights(rule, key, len(config.local_chunks))
    return rule.retention.lift(rule.architecture.init(key))


def spread(x: Array, batch: int, *axes: str | None) -> Array:
    """[1, ...] once for every sequence, [B, ...]: an array of its own, split over its logical axes."""
    shape = (batch, *x.shape[1:])
    return jnp.broadcast_to(x, shape, out_sharding=sharding.out(shape, *axes)) + 0
