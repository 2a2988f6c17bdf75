"""The memory alone: engines and shapes, forward, and forward and backward."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax import sharding
from titans_jax.memory import IMPLEMENTATIONS, PRESETS, Gates, Memory, Rule, Span, Weights, miras, unit_rate
from titans_jax.sharding import ROWS
from titans_jax.speed import flops
from titans_jax.speed.clock import Timer, timer
from titans_jax.speed.rounds import Subject, done

CHUNK, MOMENTUM, KEEP = 64, 0.9, 0.99


class Shape(NamedTuple):
    """heads memories of size dim side by side."""

    heads: int
    dim: int

    @classmethod
    def of(cls, text: str) -> "Shape":
        """4x64 is 4 heads of 64. Raises ValueError for what is not two whole numbers.

        >>> Shape.of("4x64")
        Shape(heads=4, dim=64)
        """
        numbers = text.split("x")
        if len(numbers) != 2 or not all(number.isdigit() and int(number) for number in numbers):
            raise ValueError(f"shape {text!r}: it must be heads x size, such as 4x64")
        return cls(*map(int, numbers))


class Tokens(NamedTuple):
    """What a memory is written with: q, k, v [B, H, T, D] (k, v [B, H, T, m, D] of several writes), Gates [B, H, T]."""

    q: Array
    k: Array
    v: Array
    gates: Gates


def tokens(rule: Rule, shape: Shape, length: int, *, chunk: int = CHUNK) -> Tokens:
    """Random tokens of one sequence: unit queries and keys, gates as a layer's at its start."""
    each, writes = (1, shape.heads, length), rule.learner.writes
    wide = (*each, shape.dim) if writes == 1 else (*each, writes, shape.dim)
    keys, sizes = jax.random.split(jax.random.key(0), 3), ((*each, shape.dim), wide, wide)
    q, k, v = (jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True))
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    rate = jnp.full(each if writes == 1 else (*each, writes), unit_rate(rule, chunk, MOMENTUM) / 2)
    return Tokens(
        q,
        k,
        v,
        Gates(
            rate,
            jnp.full(each, MOMENTUM),
            jnp.full(each, KEEP),
            threshold=jnp.full(each, shape.dim**0.5) if rule.bias.threshold else None,
            weight=jnp.ones(each) if rule.learner.window > 1 else None,
        ),
    )


Init = Callable[[Array], Weights]


def first_weights(rule: Rule, heads: int, init: Init | None = None) -> Weights:
    """[H, in, out], by `init` from a key a head, or as the rule begins."""
    return jax.vmap(init or rule.architecture.init)(jax.random.split(jax.random.key(1), heads))


def inputs(
    rule: Rule, shape: Shape, length: int, *, chunk: int = CHUNK, init: Init | None = None
) -> tuple[Weights, Tokens, Array]:
    """What `gradient` takes: `first_weights`, tokens, and a cotangent of ones."""
    given = tokens(rule, shape, length, chunk=chunk)
    return first_weights(rule, shape.heads, init), given, jnp.ones_like(given.q)


def forward(memory: Memory, weights: Weights, tokens: Tokens) -> Array:
    """y [B, H, T, D] of memories that begin with weights [H, in, out]; the call lies on the grid of chunks."""
    length = tokens.q.shape[2]

    def one(weights: Weights, tokens: Tokens) -> Array:
        y, _, _ = memory.update(memory.init(weights), *tokens, span=Span(0, length))
        return y

    return sharding.by_row(one, (weights, tokens), (ROWS[1:], ROWS), ROWS)


def loss(memory: Memory, weights: Weights, tokens: Tokens, cotangent: Array) -> Array:
    """sum(y * cotangent), whose gradient is that of y against the cotangent."""
    return (forward(memory, weights, tokens) * cotangent).sum(dtype=jnp.float32)


def gradient(memory: Memory) -> Any:
    """A compiled (weights, tokens, cotangent) -> gradients of the weights, q, k, v and gates."""
    return jax.jit(jax.grad(lambda *inputs: loss(memory, *inputs), argnums=(0, 1)))


def subject(
    rule: str, shape: Shape, length: int, *, engine: str, backward: bool, matmul_dtype: str = "float32"
) -> Subject:
    """The memory of a preset, on one sequence. Raises NotImplementedError where the engine does not serve the rule."""
    made = PRESETS[rule](shape.dim)
    memory = miras(made, chunk=CHUNK, implementation=engine, matmul_dtype=matmul_dtype)

    def make() -> Timer:
        given = tokens(made, shape, length)
        weights = first_weights(made, shape.heads)
        if backward:
            cotangent = jax.random.normal(jax.random.key(2), given.q.shape)
            slope = gradient(memory)
            return timer(done(lambda: slope(weights, given, cotangent)))
        read = jax.jit(lambda weights, given: forward(memory, weights, given))
        return timer(done(lambda: read(weights, given)))

    counted = flops.forward(made, CHUNK) if engine == "chunked" else None
    facts = {
        "rule": rule,
        "heads": shape.heads,
        "head_dim": shape.dim,
        "engine": engine,
        "pass": "forward and backward" if backward else "forward",
        "matmul_dtype": matmul_dtype,
    }
    return Subject(make, length, facts, counted and counted * shape.heads * (3 if backward else 1))


KINDS = ((False, "float32"), (True, "float32"), (True, "bfloat16"))
"""What a memory is timed at: whether backward too, and the dtype of its products' factors."""


def subjects(
    rules: Sequence[str], shapes: Sequence[Shape], engines: Sequence[str] | None, length: int
) -> dict[str, Subject]:
    """Every rule and shape by every engine that serves it: forward, and forward and backward of either matmul_dtype.

    engines: None is the one that `miras` picks for each rule. length: tokens of the sequence. Raises ValueError for a
    name that is no rule or no engine, an engine that serves none of the rules, and a length that no chunks fill.
    """
    _known("rule", rules, PRESETS)
    _known("engine", engines or (), IMPLEMENTATIONS)
    if length % CHUNK:
        raise ValueError(f"length: {length} tokens; it must be a multiple of the chunk, {CHUNK}")
    found = {}
    for rule in rules:
        for engine in _serving(rule, engines):
            for shape in shapes:
                name = f"{rule} {shape.heads}x{shape.dim} {engine}"
                for backward, dtype in KINDS if engine != "recurrent" else KINDS[:-1]:  # which rounds no factor
                    kind = ("forward and backward" if backward else "forward") + f" {dtype}" * (dtype != "float32")
                    found[f"{name} {kind}"] = subject(
                        rule, shape, length, engine=engine, backward=backward, matmul_dtype=dtype
                    )
    if not found:
        raise ValueError(f"engines: none of {', '.join(engines or ())} serves {', '.join(rules)}")
    return found


def _known(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} named {name!r}; known are {', '.join(known)}")


def _serving(rule: str, engines: Sequence[str] | None) -> list[str]:
    """The engines, of these, that serve a rule; of all, the first."""
    serving = []
    for engine in engines or IMPLEMENTATIONS:
        try:
            miras(PRESETS[rule](16), chunk=CHUNK, implementation=engine)
        except NotImplementedError:
            continue
        serving.append(engine)
    return serving if engines else serving[:1]
