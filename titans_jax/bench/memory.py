"""`bench memory`: the memory alone by rule, engine and shape, forward, and forward and backward."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from titans_jax import sharding
from titans_jax.bench.clock import Timer
from titans_jax.bench.counts import chunk_flops
from titans_jax.bench.interleave import Subject, device_timer
from titans_jax.memory import IMPLEMENTATIONS, PRESETS, Gates, Memory, Rule, Weights, miras, unit_rate
from titans_jax.sharding import BATCH_HEADS

CHUNK, MOMENTUM, KEEP = 64, 0.9, 0.99


class Shape(NamedTuple):
    """Memories side by side, and the size of each."""

    heads: int
    dim: int

    @classmethod
    def of(cls, text: str) -> "Shape":
        """4x64 is 4 heads of 64. Raises ValueError for any other form.

        >>> Shape.of("4x64")
        Shape(heads=4, dim=64)
        """
        numbers = text.split("x")
        if len(numbers) != 2 or not all(number.isdigit() and int(number) for number in numbers):
            raise ValueError(f"shape {text!r}: it must be heads x size, such as 4x64")
        return cls(*map(int, numbers))


class Tokens(NamedTuple):
    """Inputs of a memory: q, k, v [B, H, T, D] (k, v [B, H, T, m, D] with m writes a token), gates [B, H, T]."""

    q: Array
    k: Array
    v: Array
    gates: Gates


def tokens(rule: Rule, shape: Shape, length: int, *, chunk: int = CHUNK) -> Tokens:
    """Random tokens of one sequence: unit queries and keys, the gates of an untrained layer."""
    each, writes = (1, shape.heads, length), rule.learner.writes_per_token
    written = each if writes == 1 else (*each, writes)
    keys, sizes = jax.random.split(jax.random.key(0), 3), (each, written, written)
    q, k, v = (jax.random.normal(key, (*size, shape.dim)) for key, size in zip(keys, sizes, strict=True))
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    gates = Gates(
        jnp.full(written, unit_rate(rule, chunk, MOMENTUM) / 2),
        jnp.full(each, MOMENTUM),
        jnp.full(each, KEEP),
        threshold=jnp.full(each, shape.dim**0.5) if rule.bias.threshold else None,
        weight=jnp.ones(each) if rule.learner.window > 1 else None,
    )
    return Tokens(q, k, v, gates)


Init = Callable[[Array], Weights]


def first_weights(rule: Rule, heads: int, init: Init | None = None) -> Weights:
    """[H, in, out] from a key for each head, by `init` or by the rule's architecture."""
    return jax.vmap(init or rule.architecture.init)(jax.random.split(jax.random.key(1), heads))


def inputs(
    rule: Rule, shape: Shape, length: int, *, chunk: int = CHUNK, init: Init | None = None
) -> tuple[Weights, Tokens, Array]:
    """The arguments of `gradient`: weights, tokens, and a cotangent of ones."""
    inputs = tokens(rule, shape, length, chunk=chunk)
    return first_weights(rule, shape.heads, init), inputs, jnp.ones_like(inputs.q)


def forward(memory: Memory, weights: Weights, tokens: Tokens) -> Array:
    """y [B, H, T, D] of memories with initial weights [H, in, out], in one call that begins at a chunk."""
    length = tokens.q.shape[2]

    def one(weights: Weights, tokens: Tokens) -> Array:
        y, _, _ = memory.update(memory.init(weights), *tokens, valid=np.ones(length, bool))
        return y

    return sharding.vmap_batch_heads(one, (weights, tokens), (BATCH_HEADS[1:], BATCH_HEADS), BATCH_HEADS)


def gradient(memory: Memory) -> Any:
    """A compiled (weights, tokens, cotangent) -> gradients of sum(y * cotangent) in weights, q, k, v and gates."""

    def loss(weights: Weights, tokens: Tokens, cotangent: Array) -> Array:
        return (forward(memory, weights, tokens) * cotangent).sum(dtype=jnp.float32)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def subject(rule: str, shape: Shape, length: int, *, engine: str, backward: bool, matmul_dtype: str) -> Subject:
    """The memory of a preset on one sequence. Raises NotImplementedError where the engine does not serve the rule."""
    made = PRESETS[rule](shape.dim)
    memory = miras(made, chunk=CHUNK, implementation=engine, matmul_dtype=matmul_dtype)

    def make() -> Timer:
        weights, inputs = first_weights(made, shape.heads), tokens(made, shape, length)
        if backward:
            cotangent = jax.random.normal(jax.random.key(2), inputs.q.shape)
            return device_timer(functools.partial(gradient(memory), weights, inputs, cotangent))
        return device_timer(functools.partial(jax.jit(functools.partial(forward, memory)), weights, inputs))

    flops = chunk_flops(made, CHUNK) if engine == "chunked" else None
    facts = {"rule": rule, "heads": shape.heads, "head_dim": shape.dim, "engine": engine}
    facts |= {"pass": "forward and backward" if backward else "forward", "matmul_dtype": matmul_dtype}
    return Subject(make, length, facts, flops and flops * shape.heads * (3 if backward else 1))


KINDS = (
    ("forward", False, "float32"),
    ("forward and backward", True, "float32"),
    ("forward and backward bfloat16", True, "bfloat16"),
)
"""What is timed: its name, whether backward too, and the dtype that products are rounded to."""


def subjects(
    rules: Sequence[str], shapes: Sequence[Shape], engines: Sequence[str] | None, length: int
) -> dict[str, Subject]:
    """Every rule and shape by every engine that serves the rule, in each of KINDS.

    engines: None is the one that `miras` picks for each rule. Raises ValueError for an unknown rule or engine, engines
    that serve none of the rules, and a length that is not a multiple of the chunk.
    """
    _check_names("rule", rules, PRESETS)
    _check_names("engine", engines or (), IMPLEMENTATIONS)
    if length % CHUNK:
        raise ValueError(f"length: {length} tokens; it must be a multiple of the chunk, {CHUNK}")
    found = {
        f"{rule} {shape.heads}x{shape.dim} {engine} {kind}": subject(
            rule, shape, length, engine=engine, backward=backward, matmul_dtype=dtype
        )
        for rule in rules
        for engine in _serving(rule, engines)
        for shape in shapes
        for kind, backward, dtype in KINDS
        if engine != "recurrent" or dtype == "float32"  # recurrent rounds no products
    }
    if not found:
        raise ValueError(f"engines: none of {', '.join(engines or ())} serves {', '.join(rules)}")
    return found


def _check_names(what: str, names: Sequence[str], allowed: Mapping[str, Any]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"no {what} named {name!r}; known are {', '.join(allowed)}")


def _serving(rule: str, engines: Sequence[str] | None) -> list[str]:
    """Those of the engines that serve a rule; without a choice, the first of all that do."""
    serving = []
    for engine in engines or IMPLEMENTATIONS:
        try:
            miras(PRESETS[rule](16), chunk=CHUNK, implementation=engine)
        except NotImplementedError:
            continue
        serving.append(engine)
    return serving if engines else serving[:1]
