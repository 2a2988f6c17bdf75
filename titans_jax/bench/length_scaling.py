"""`bench growth`: CPU-seconds and bytes of a token by length, in training and in a stream, in a process for each."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from titans_jax.bench import interleave, memory
from titans_jax.bench.clock import Timer
from titans_jax.bench.interleave import Subject, device_timer
from titans_jax.bench.memory import CHUNK, Shape
from titans_jax.bench.processes import once, peak_bytes, reset_peak
from titans_jax.bench.report import Report, Rows
from titans_jax.memory import miras, presets
from titans_jax.memory.types import state_axes

LENGTHS = (1024, 4096, 16384, 65536, 262144)
SHAPE = Shape(4, 64)
BLOCK = 1024
"""Tokens of a call of a stream."""
PASSES = ("training", "streaming")
HEADS = {
    "cpu_over_least": (f"CPU over that of {BLOCK} tokens", ".3f"),
    "peak_bytes": ("peak memory, bytes", ",.0f"),
    "bytes_per_token": ("bytes a token", ",.0f"),
    "temp_bytes": ("temporaries that XLA plans, bytes", ",.0f"),
}


def training(length: int) -> Timer:
    """The memory's gradient over this many tokens in weights, q, k, v, gates; temp_bytes is what XLA plans to hold."""
    rule = presets.titans(SHAPE.dim)
    made = miras(rule, chunk=CHUNK)

    inputs = functools.partial(memory.inputs, rule, SHAPE, length)
    slope = memory.gradient(made).lower(*jax.eval_shape(inputs)).compile()
    temp_bytes = slope.memory_analysis().temp_size_in_bytes
    return _weighed(lambda: functools.partial(slope, *inputs()), length, temp_bytes=temp_bytes)


def streaming(length: int) -> Timer:
    """The memory over this many tokens in calls of BLOCK, each with the state of the call before."""
    rule, axes = presets.titans(SHAPE.dim), state_axes(0)
    made = miras(rule, chunk=CHUNK)

    def head(state: Any, tokens: Any) -> Any:
        return made.update(state, *tokens, valid=np.ones(BLOCK, bool))

    def step(state: Any, tokens: Any) -> Any:
        y, state, _ = jax.vmap(head, (axes, 0), (0, axes, 0))(state, jax.tree.map(lambda x: x[0], tokens))
        return state, y

    @jax.jit
    def initial_state() -> Any:
        states = jax.vmap(made.init, out_axes=axes)(memory.first_weights(rule, SHAPE.heads))
        return jax.tree.map(lambda x: x + 0, states)

    tokens = memory.tokens(rule, SHAPE, BLOCK)
    compiled = jax.jit(step, donate_argnums=0).lower(initial_state(), tokens).compile()

    def call() -> Any:
        state = initial_state()
        for _ in range(length // BLOCK):
            state, y = compiled(state, tokens)
            jax.block_until_ready(y)
        return state

    return _weighed(lambda: call, length)


def _weighed(make: Callable[[], Callable[[], Any]], length: int, **sizes: float) -> Timer:
    """A timer of the call that `make` returns, and the most memory that its inputs, results and temporaries took.

    What was compiled before does not count.
    """
    before = reset_peak()
    take = device_timer(make())
    found = sizes if before is None else {"bytes_per_token": (peak_bytes() - before) / length, **sizes}
    return lambda: {**take(), **found}


def measure(lengths: Sequence[int], count: int, rows: Rows) -> Report:
    """Each pass at each length.

    peak_bytes is the most that a process held, with Python, jax and compiling; bytes_per_token is the tokens' part.
    cpu_over_least is a token's CPU-seconds over those at BLOCK tokens. Raises ValueError for a length that is not a
    multiple of BLOCK.
    """
    for length in lengths:
        if length % BLOCK:
            raise ValueError(f"lengths: {length} tokens; each must be a multiple of {BLOCK}")
    subjects = {}
    for kind in PASSES:
        for length in sorted({BLOCK, *lengths}):
            take = once(f"{__name__}:{kind}", length=length)
            subjects[f"{kind} {length}"] = Subject(lambda take=take: take, length, {"pass": kind})  # type: ignore[misc]
    report = interleave.run(subjects, count, rows, what="bench growth", matmul=False, heads=HEADS, picture="lines")
    for row in report.rows.values():
        row["cpu_over_least"] = row["cpu_ms"] / report.rows[f"{row['pass']} {BLOCK}"]["cpu_ms"]
    return report
