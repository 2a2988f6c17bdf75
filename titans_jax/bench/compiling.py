"""`bench compile`: seconds to trace, lower and compile tiny's training step by its layers, and the memory alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from titans_jax import config
from titans_jax.bench import interleave, memory
from titans_jax.bench.clock import Timer, sample
from titans_jax.bench.interleave import Subject
from titans_jax.bench.memory import CHUNK, Shape
from titans_jax.bench.processes import once
from titans_jax.bench.report import Report, Rows
from titans_jax.memory import miras, presets
from titans_jax.training.placement import Placement
from titans_jax.training.step import TrainState, define, make_step, optimizer_of

LAYERS = (2, 24)
STAGES = ("trace", "lower", "compile")
HEADS = {f"{stage}_cpu": (f"{stage}, CPU-s", ".2f") for stage in STAGES}


def step_of_tiny(layers: int) -> Timer:
    """The training step of tiny with this many layers."""
    base = config.load("tiny")
    model = replace(base.model, depth=layers)
    definition, optimizer = define(model), optimizer_of(model, base.optim, base.train.steps)
    params = jax.eval_shape(definition.init, jax.random.key(0))
    state = TrainState(params, jax.eval_shape(optimizer.init, params), jax.eval_shape(lambda: jax.random.key(0)))
    batch = Placement.of(base.mesh).abstract_batch(base.data)
    return _stages(lambda: make_step(definition.graphdef, optimizer, base.train), (state, batch))


def memory_alone(length: int) -> Timer:
    """The memory's gradient in everything, 4 heads of 64."""
    shape, rule = Shape(4, 64), presets.titans(64)
    inputs = jax.eval_shape(lambda: memory.inputs(rule, shape, length))
    return _stages(lambda: memory.gradient(miras(rule, chunk=CHUNK)), inputs)


def _stages(function: Callable[[], Any], inputs: tuple[Any, ...]) -> Timer:
    """A timer of each stage from a jitted function to a program; it is good for one sample, since jax caches."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax.block_until_ready(jax.jit(jnp.sin)(1.0))  # the first program of a process pays for others

    def take() -> dict[str, float]:
        found, made = {"cpu": 0.0, "wall": 0.0}, [function()]
        for stage, arguments in zip(STAGES, (inputs, (), ()), strict=True):
            make = getattr(made[-1], stage)
            cost = sample(lambda: made.append(make(*arguments)))  # noqa: B023
            found |= {f"{stage}_cpu": cost.cpu, "cpu": found["cpu"] + cost.cpu, "wall": found["wall"] + cost.wall}
        return found

    return take


def measure(layers: Sequence[int], count: int, rows: Rows) -> Report:
    """Every sample in a fresh process; the ratios are to the fewest layers."""

    def subject(function: str, **spec: int) -> Subject:
        take = once(f"{__name__}:{function}", **spec)
        return Subject(lambda: take, None, dict(spec))

    every = {f"training step of tiny, {n} layers": subject("step_of_tiny", layers=n) for n in sorted(layers)}
    steps = list(every)
    every["memory alone"] = subject("memory_alone", length=1024)
    pairs = {f"{name} over {steps[0]}": (name, steps[0]) for name in steps[1:]}
    return interleave.run(every, count, rows, what="bench compile", pairs=pairs, matmul=False, heads=HEADS)
