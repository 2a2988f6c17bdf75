"""TNT beside Titans, both with chunks of 16: how long their sequential scan is, and how fast they train."""

from collections.abc import Callable

import jax

from titans_jax.memory import Memory, Weights, miras, presets
from titans_jax.memory.tnt import first_weights as tnt_weights
from titans_jax.memory.tnt import tnt
from titans_jax.speed import memory, rounds, tpu
from titans_jax.speed.clock import Timer, timer
from titans_jax.speed.memory import Shape, Tokens
from titans_jax.speed.processes import once, processes
from titans_jax.speed.rounds import Subject, done
from titans_jax.speed.scans import longest
from titans_jax.speed.table import Report
from titans_jax.training.bench import Rows

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


def memories() -> dict[str, tuple[Memory, Callable[[jax.Array], Weights]]]:
    """By name: the memory and what makes its first weights from a key."""
    both = tnt(RULE, chunk=GLOBAL, local_chunks=(CHUNK,), shard=GLOBAL)
    return {
        TITANS: (miras(RULE, chunk=CHUNK), RULE.architecture.init),
        TNT: (both, lambda key: tnt_weights(RULE, key, 1)),
    }


def measure(length: int, count: int, rows: Rows) -> Report:
    """Training, forward and backward, of one sequence. Raises ValueError for a length that no global chunks fill."""
    if length % GLOBAL:
        raise ValueError(f"length: {length} tokens; it must be a multiple of {GLOBAL}")
    with processes() as start:
        every = {
            name: Subject(start(f"{__name__}:training", name=name, length=length), length, _seen(name, length, rows))
            for name in (TITANS, TNT)
        }
        measured = rounds.run(every, count, rows, what="bench tnt")
    without = () if tpu.available() else ("No cycles: the TPU's compiler is not here (pip install titans-jax[tpu]).",)
    return Report(measured.found(), measured.ratios({f"{TITANS} over {TNT}": (TITANS, TNT)}), without, HEADS)


def _seen(name: str, length: int, rows: Rows) -> dict[str, float]:
    """What there is to see of a memory's program without running it."""
    one, init = memories()[name]
    shapes = jax.eval_shape(lambda: inputs(init, length))
    read = jax.make_jaxpr(lambda weights, given: memory.forward(one, weights, given))(*shapes[:2])
    trained = jax.make_jaxpr(memory.gradient(one))(*shapes)
    seen: dict[str, float] = {"forward_steps": longest(read.jaxpr), "training_steps": longest(trained.jaxpr)}
    if tpu.available():
        take = once(f"{tpu.__name__}:memory_cycles", name=name, length=length)
        seen["cycles"] = rows.get(f"cycles: {name}", lambda: dict(take()))["cycles"] / length
    return seen


def training(name: str, length: int) -> Timer:
    """A memory's gradient in everything."""
    one, init = memories()[name]
    slope, given = memory.gradient(one), inputs(init, length)
    return timer(done(lambda: slope(*given)))


def inputs(init: Callable[[jax.Array], Weights], length: int) -> tuple[Weights, Tokens, jax.Array]:
    """First weights, tokens and a cotangent."""
    return memory.inputs(RULE, SHAPE, length, chunk=CHUNK, init=init)
