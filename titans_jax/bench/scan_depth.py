"""`bench tnt`: TNT beside Titans, both with chunks of 16: the depth of their scans, and how fast they train."""

from collections.abc import Callable
from typing import Any

import jax

from titans_jax.bench import interleave, memory, tpu
from titans_jax.bench.clock import Timer
from titans_jax.bench.counts import scan_depth
from titans_jax.bench.interleave import Subject, device_timer
from titans_jax.bench.memory import Shape, Tokens
from titans_jax.bench.processes import once, processes
from titans_jax.bench.report import Report, Rows
from titans_jax.memory import Memory, Weights, miras, presets
from titans_jax.memory.tnt import tnt, tnt_weights

CHUNK, GLOBAL = 16, 2048
"""Tokens of a chunk of Titans and of TNT's local memory; of TNT's global chunk and its shards."""
SHAPE = Shape(4, 64)
RULE = presets.titans(SHAPE.dim)
TITANS, TNT = f"titans, chunk {CHUNK}", f"tnt, local chunk {CHUNK}, global {GLOBAL}"
HEADS = {
    "forward_steps": ("steps in sequence, forward", ",d"),
    "training_steps": ("forward and backward", ",d"),
    "cycles": ("cycles a token by the TPU compiler", ",.0f"),
}


def memories() -> dict[str, tuple[Memory, Callable[[jax.Array], Any]]]:
    """By name: the memory, and a function from a key to its initial weights."""
    both = tnt(RULE, chunk=GLOBAL, local_chunks=(CHUNK,), shard=GLOBAL)
    return {
        TITANS: (miras(RULE, chunk=CHUNK), RULE.architecture.init),
        TNT: (both, lambda key: tnt_weights(RULE, key, 1)),
    }


def inputs(init: Callable[[jax.Array], Any], length: int) -> tuple[Weights, Tokens, jax.Array]:
    """Initial weights, tokens and a cotangent."""
    return memory.inputs(RULE, SHAPE, length, chunk=CHUNK, init=init)


def training(name: str, length: int) -> Timer:
    """A memory's gradient in everything."""
    one, init = memories()[name]
    gradient, arguments = memory.gradient(one), inputs(init, length)
    return device_timer(lambda: gradient(*arguments))


def measure(length: int, count: int, rows: Rows) -> Report:
    """Forward and backward over one sequence. Raises ValueError for a length that is not a multiple of GLOBAL."""
    if length % GLOBAL:
        raise ValueError(f"length: {length} tokens; it must be a multiple of {GLOBAL}")
    with processes() as start:

        def subject(name: str) -> Subject:
            return Subject(start(f"{__name__}:training", name=name, length=length), length, _facts(name, length, rows))

        subjects, pairs = {name: subject(name) for name in (TITANS, TNT)}, {f"{TITANS} over {TNT}": (TITANS, TNT)}
        notes = () if tpu.available() else ("No cycles: the TPU's compiler is not here (pip install titans-jax[tpu]).",)
        return interleave.run(subjects, count, rows, what="bench tnt", pairs=pairs, notes=notes, heads=HEADS)


def _facts(name: str, length: int, rows: Rows) -> dict[str, float]:
    """The numbers of a memory's program that need no run."""
    one, init = memories()[name]
    shapes = jax.eval_shape(lambda: inputs(init, length))
    read = jax.make_jaxpr(lambda weights, tokens: memory.forward(one, weights, tokens))(*shapes[:2])
    trained = jax.make_jaxpr(memory.gradient(one))(*shapes)
    facts: dict[str, float] = {"forward_steps": scan_depth(read.jaxpr), "training_steps": scan_depth(trained.jaxpr)}
    if tpu.available():
        take = once(f"{tpu.__name__}:memory_cycles", name=name, length=length)
        facts["cycles"] = rows.get(f"cycles: {name}", lambda: dict(take()))["cycles"] / length
    return facts
