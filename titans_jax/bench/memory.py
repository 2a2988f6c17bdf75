"""`bench memory`: a memory alone by rule, shape, length and pass: its time, FLOPs, scans, bytes, TPU cycles."""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from titans_jax.bench import tpu
from titans_jax.bench.interleave import Plan, Subject, device_timer
from titans_jax.bench.processes import Timer, peak_bytes, reset_peak
from titans_jax.memory import PRESETS, Gates, Rule, miras, unit_rate
from titans_jax.memory.tnt import tnt, tnt_axes, tnt_weights
from titans_jax.memory.types import state_axes
from titans_jax.nearest import not_named
from titans_jax.training.counts import matmul_flops, scan_depth

MOMENTUM, KEEP = 0.9, 0.99
TNT, GLOBAL = "tnt", 2048
"""Titans with a local memory, whose chunk is the one asked for; tokens of its global chunk and of its shards."""
BLOCK = 1024
"""Tokens of a call of a stream."""
PASSES = ("forward", "training", "training-bfloat16", "stream")
"""y; the gradient in weights, q, k, v and gates; the same with products rounded to bfloat16; y in calls of BLOCK."""


class Tokens(NamedTuple):
    """Inputs of memories: q, k, v [H, T, D] (k, v [H, T, m, D] with m writes a token), gates [H, T]."""

    q: Array
    k: Array
    v: Array
    gates: Gates


def tokens(rule: Rule, heads: int, dim: int, length: int, chunk: int) -> Tokens:
    """Random tokens of one sequence: unit queries and keys, the gates of an untrained layer."""
    each, writes = (heads, length), rule.learner.writes_per_token
    written = each if writes == 1 else (*each, writes)
    keys, sizes = jax.random.split(jax.random.key(0), 3), (each, written, written)
    q, k, v = (jax.random.normal(key, (*size, dim)) for key, size in zip(keys, sizes, strict=True))
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    gates = Gates(
        jnp.full(written, unit_rate(rule, chunk, MOMENTUM) / 2),
        jnp.full(each, MOMENTUM),
        jnp.full(each, KEEP),
        threshold=jnp.full(each, dim**0.5) if rule.bias.threshold else None,
        weight=jnp.ones(each) if rule.learner.window > 1 else None,
    )
    return Tokens(q, k, v, gates)


class Program(NamedTuple):
    """Memories side by side. function: the pass, of what `inputs` returns; of a stream (state, tokens) -> state, y.

    inputs: weights [H, in, out], Tokens and, for a gradient, a cotangent [H, T, D]. start: weights -> the first state.
    y is [H, T, D]; a call without a state begins at a chunk.
    """

    function: Callable[..., Any]
    inputs: Callable[[], tuple[Any, ...]]
    start: Callable[[Any], Any]


def program(rule: str, shape: Sequence[int], length: int, kind: str, chunk: int) -> Program:
    """A rule of PRESETS, or TNT, with chunks of this many tokens. shape: heads, and their size. kind: one of PASSES."""
    heads, dim = shape
    part = PRESETS["titans" if rule == TNT else rule](dim)
    dtype = "bfloat16" if kind.endswith("bfloat16") else "float32"
    init: Callable[[Array], Any] = part.architecture.init
    axes: Any = state_axes(0)  # heads are axis 0
    if rule == TNT:
        init, axes = functools.partial(tnt_weights, part, locals=1), tnt_axes(0, 1)
        memory = tnt(part, chunk=GLOBAL, local_chunks=(chunk,), shard=GLOBAL, matmul_dtype=dtype)
    else:
        memory = miras(part, chunk=chunk, matmul_dtype=dtype)

    def inputs() -> tuple[Any, ...]:
        weights = jax.vmap(init)(jax.random.split(jax.random.key(1), heads))
        sequence = tokens(part, heads, dim, BLOCK if kind == "stream" else length, chunk)
        cotangent = jax.random.normal(jax.random.key(2), sequence.q.shape)
        return (weights, sequence, cotangent) if kind.startswith("training") else (weights, sequence)

    def start(weights: Any) -> Any:
        return jax.vmap(memory.init, out_axes=axes)(weights)

    def step(state: Any, tokens: Tokens) -> tuple[Any, Array]:
        valid = np.ones(tokens.q.shape[1], bool)
        y, state, _ = jax.vmap(lambda s, x: memory.update(s, *x, valid=valid), (axes, 0), (0, axes, 0))(state, tokens)
        return state, y

    def forward(weights: Any, tokens: Tokens) -> Array:
        return step(start(weights), tokens)[1]

    def loss(weights: Any, tokens: Tokens, cotangent: Array) -> Array:
        return (forward(weights, tokens) * cotangent).sum(dtype=jnp.float32)

    function = {"forward": forward, "stream": step}.get(kind, jax.grad(loss, argnums=(0, 1)))
    return Program(function, inputs, start)


def timer(alone: bool, **case: Any) -> Timer:
    """The timer of a `program`; alone: it has the process for itself, and its bytes are measured.

    bytes_per_token: the most memory that inputs, results and temporaries took, compiling aside, over the tokens.
    """
    made, length = program(**case), case["length"]
    shapes = jax.eval_shape(made.inputs)
    call = _stream(made, length) if case["kind"] == "stream" else jax.jit(made.function).lower(*shapes).compile()
    before = reset_peak() if alone else None
    take = device_timer(functools.partial(call, *made.inputs()))
    if before is None:
        return take
    found = (peak_bytes() - before) / length
    return lambda: {**take(), "bytes_per_token": found}


def _stream(made: Program, length: int) -> Callable[..., Any]:
    """All tokens in calls of BLOCK, each with the state of the call before."""
    start = jax.jit(lambda weights: jax.tree.map(lambda x: x + 0, made.start(weights)))
    weights, sequence = jax.eval_shape(made.inputs)
    block = jax.jit(made.function, donate_argnums=0).lower(jax.eval_shape(start, weights), sequence).compile()

    def call(weights: Any, tokens: Tokens) -> Any:
        state = start(weights)
        for _ in range(length // BLOCK):
            state, y = block(state, tokens)
            jax.block_until_ready(y)
        return state

    return call


def plan(
    rules: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    passes: Sequence[str],
    chunk: int,
    alone: bool,
    cycles: bool,
) -> Plan:
    """Every combination; the ratios are to the first rule and to the first length.

    alone: each in a process of its own, with its bytes. cycles: also the TPU compiler's estimate for each. Raises
    ValueError for an unknown rule or pass, a length that no whole chunks fill, and cycles without libtpu.
    """
    for what, chosen, known in (("rule", rules, (*PRESETS, TNT)), ("pass", passes, PASSES)):
        for name in chosen:
            if name not in known:
                raise not_named(what, name, known)
    whole = math.lcm(chunk, GLOBAL if TNT in rules else 1, BLOCK if "stream" in passes else 1)
    for length in lengths:
        if length % whole:
            raise ValueError(f"lengths: {length} tokens; each must be a multiple of {whole}")
    if cycles and not tpu.available():
        raise ValueError("--cycles needs the TPU's compiler; pip install titans-jax[tpu]")
    subjects, pairs = {}, {}
    for rule, shape, length, kind in itertools.product(rules, shapes, lengths, passes):
        case = {"rule": rule, "shape": shape, "length": length, "kind": kind, "chunk": chunk}
        subjects[name := _name(rule, shape, length, kind)] = _subject(case, alone)
        for first in (_name(rules[0], shape, length, kind), _name(rule, shape, lengths[0], kind)):
            if first != name:
                pairs[f"{name} over {first}"] = (name, first)
        if cycles and kind != "stream":
            subjects[f"TPU compiler: {name}"] = Subject(tpu.memory_cycles, case, python=sys.executable)
    return Plan(subjects, pairs)


def _name(rule: str, shape: tuple[int, int], length: int, kind: str) -> str:
    return f"{rule} {shape[0]}x{shape[1]} {length:,} {kind}"


def _subject(case: dict[str, Any], alone: bool) -> Subject:
    """A case with what is counted in its program: the steps of its scans, and the least FLOPs of its products.

    The gradient of a product is two products of its size; what the backward pass computes again is not counted.
    """
    made, kind, counted = program(**case), case["kind"], {"pass": case["kind"]}
    shapes, flops = jax.eval_shape(made.inputs), 0.0
    if kind != "stream":
        counted["steps"] = scan_depth(jax.make_jaxpr(made.function)(*shapes).jaxpr)
        forward = program(**case | {"kind": "forward"}).function
        flops = matmul_flops(jax.make_jaxpr(forward)(*shapes[:2]).jaxpr) / case["length"]
        flops *= 1 if kind == "forward" else 3
    python = sys.executable if alone else None
    return Subject(timer, case | {"alone": alone}, case["length"], flops or None, counted, python)
