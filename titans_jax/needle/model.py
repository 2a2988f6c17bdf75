"""Titan-Min: a small model that finds the position of the needle in a sequence.

A block attends inside segments. In front of each segment are learned tokens, and the memory's answers to a few learned
queries (memory as a context). The output is written to the memory token by token, and read back.
The head `point` scores each token by itself, which needs no memory. The heads `classify` and `regress` read the last
token's state alone, so that everything before its segment must come through the memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from titans_jax.data.synthetic import NEEDLE_VOCAB, PAD
from titans_jax.memory import Gates, State, unit_rate
from titans_jax.needle.config import NeedleConfig
from titans_jax.nn.heads import HEADS
from titans_jax.nn.layers import Conv, LearnedPositions, Linear, RMSNorm, l2_normalise, logit, param
from titans_jax.nn.memory import MemoryMixer, Retrieve
from titans_jax.nn.memory_state import LayerInfo

ACTIVATIONS = {"silu": jax.nn.silu, "relu": jax.nn.relu}


class SurpriseGatedMemory(MemoryMixer):
    """A memory that skips what it knows: a token is written where ||M(k) - v|| >= threshold ||v||.

    M is the memory at the start of the segment, where the gradients are taken: the error is that of the loss whose
    gradient is written. Relative to the value's norm the threshold has no unit; on the gradient's norm it would depend
    on the weights. A call must not cross the end of a chunk.
    """

    def __init__(self, config: NeedleConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config.model, rngs=rngs)
        self.surprise_threshold = config.surprise_threshold
        self.gates.max_rate = config.memory_lr * unit_rate(self.rule, config.model.memory.chunk, equal=1)
        if self.gates.rate is not None:
            self.gates.rate.bias = param(jnp.full(config.memory_heads, logit(1 / (1 + config.segment_size))), None)

    def modulate_gates(self, gates: Gates, state: State, k: Array, v: Array) -> Gates:
        """The gates of k, v [B, H, T, D], with a rate of 0 for tokens that do not surprise."""
        error = jnp.linalg.norm(self.retrieve(state, k) - v, axis=-1)
        surprising = error >= self.surprise_threshold * jnp.linalg.norm(v, axis=-1)
        return gates._replace(rate=gates.rate * surprising)


class TitanBlock(nnx.Module):
    """x + W_o(norm(Attn(P || h || x)) * silu(x W_g)), then + M(norm(x)): P learned tokens, h the memory's answers.

    Attn is cosine attention with a learned temperature per head; q, k, v have a causal depthwise convolution (with
    their projections it is depthwise-separable) and an activation.
    """

    def __init__(self, config: NeedleConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dim, heads = config.dim, config.heads
        scale = (2 * config.layers) ** -0.5
        self.norm = RMSNorm(dim)
        self.qkv = Linear(dim, 3 * dim, ("embed", "heads"), rngs=rngs)
        self.conv = Conv(4, 3 * dim) if config.dsconv else None
        first = 10.0 if config.l2 else (dim // heads) ** -0.5
        self.log_temperature = param(jnp.full(heads, jnp.log(first)), None)
        self.gate = Linear(dim, dim, ("embed", "heads"), rngs=rngs)
        self.out_norm = RMSNorm(dim)
        self.out = Linear(dim, dim, ("heads", "embed"), scale=scale, rngs=rngs)
        tokens = jax.random.normal(rngs.params(), (config.n_persistent, dim))
        self.persistent = param(tokens, None, None)
        if config.memory:
            self.memory_norm = RMSNorm(dim)
            self.memory = SurpriseGatedMemory(config, rngs=rngs)
        if config.memory and config.memory_slots:
            self.questions = param(jax.random.normal(rngs.params(), (config.memory_slots, dim)), None, None)
            self.retrieve = Retrieve(config.model, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, LayerInfo | None]:
        """x: [B, T, E], T a multiple of segment_size. Returns [B, T, E], and the memory's info [B, H, T] or None."""
        B, T, _ = x.shape
        L = self.config.segment_size
        normed = self.norm(x)
        age = jnp.broadcast_to(jnp.arange(T), (B, T))
        qkv = self.qkv(normed)
        if self.conv is not None:
            qkv, _ = self.conv(qkv, self.conv.init_state(B, "float32"), age)
        parts = (x, *self.split(qkv), self.gate(normed), age)
        segments = jax.tree.map(lambda a: a.reshape(B, T // L, L, *a.shape[2:]).swapaxes(0, 1), parts)
        memory = self.memory.init_state(B) if self.config.memory else None
        _, (y, info) = lax.scan(self._segment, memory, segments)
        y = y.swapaxes(0, 1).reshape(x.shape)
        return y, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], T), info)

    def split(self, qkv: Array) -> tuple[Array, Array, Array]:
        """[B, T, 3 E] -> q, k, v [B, T, H, D], activated, q and k of unit length."""
        qkv, size = ACTIVATIONS[self.config.activation](qkv), self.config.dim // self.config.heads
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, self.config.heads, size), 2, 0)
        return (l2_normalise(q), l2_normalise(k), v) if self.config.l2 else (q, k, v)

    def _segment(self, memory: Any, segment: tuple[Array, ...]) -> tuple[Any, tuple[Array, LayerInfo | None]]:
        x, q, k, v, gate, age = segment
        y = self._attend(q, k, v, self._context(memory, x.shape[0]))
        x = x + self.out(self.out_norm(y) * jax.nn.silu(gate))
        if memory is None:
            return None, (x, None)
        y, memory, info, _ = self.memory(self.memory_norm(x), memory, age)
        return memory, (x + y, info)

    def _context(self, memory: Any, batch: int) -> tuple[Array, Array]:
        """Keys and values [B, n, H, D] of the learned tokens and of the memory's answers."""
        front = jnp.broadcast_to(self.persistent[...], (batch, *self.persistent.shape))
        if memory is not None and self.config.memory_slots:
            questions = jnp.broadcast_to(self.questions[...], (batch, *self.questions.shape))
            answers = self.retrieve(self.retrieve.query(questions), memory.memory, self.memory)
            front = jnp.concatenate([front, answers], 1)
        _, k, v = self.split(self.qkv(self.norm(front)))
        return k, v

    def _attend(self, q: Array, k: Array, v: Array, front: tuple[Array, Array]) -> Array:
        """[B, L, H, D] -> [B, L, E]; every token sees the context and the tokens up to itself."""
        n, L = front[0].shape[1], q.shape[1]
        k, v = (jnp.concatenate(pair, 1) for pair in zip(front, (k, v), strict=True))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * jnp.exp(self.log_temperature[...])[:, None, None]
        visible = jnp.arange(n + L) <= n + jnp.arange(L)[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), -1)
        return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*q.shape[:2], -1)


class TitanMin(nnx.Module):
    """Tokens [B, T], padded at the end -> logits [B, T] of the needle's position. All layers are causal."""

    def __init__(self, config: NeedleConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        positions = max(config.lengths)
        self.embedding = param(0.02 * jax.random.normal(rngs.params(), (NEEDLE_VOCAB, config.dim)), "vocab", "embed")
        self.positions = LearnedPositions(config.dim, positions, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = jax.vmap(lambda key: TitanBlock(config, rngs=nnx.Rngs(key)))(keys)
        self.norm = RMSNorm(config.dim)
        self.head = HEADS[config.head](config.dim, positions, rngs=rngs)

    def __call__(self, tokens: Array) -> tuple[Array, LayerInfo | None]:
        """Returns logits [B, T], and the memories' info [layers, B, H, T] or None.

        Raises ValueError for sequences that are longer than the model's positions.
        """
        T, most = tokens.shape[1], max(self.config.lengths)
        if T > most:
            raise ValueError(f"tokens: {T} in a sequence; this model has {most} positions")
        length = (tokens != PAD).sum(1)
        rows = -(-T // self.config.segment_size) * self.config.segment_size
        tokens = jnp.pad(tokens, [(0, 0), (0, rows - T)], constant_values=PAD)
        at = self.positions(jnp.arange(rows)[None])
        x = (self.embedding[...][tokens] + at) * self.config.dim**0.5
        x, info = lax.scan(lambda x, block: block(x), x, self.blocks)
        info = jax.tree.map(lambda a: a[..., :T], info)
        return self.head(self.norm(x)[:, :T], length, self.positions.embedding[...]), info
