"""`bench model`: training steps with memories and without, and the input pipeline beside them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax import data
from titans_jax.bench import fit, interleave
from titans_jax.bench.clock import Timer
from titans_jax.bench.counts import least_flops_per_token
from titans_jax.bench.interleave import Subject, device_timer
from titans_jax.bench.report import Report, Rows
from titans_jax.config import Experiment
from titans_jax.data import DataConfig
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.nn.config import MEMORY_BLOCKS
from titans_jax.nn.memory import MemoryLayer
from titans_jax.optim import OptimConfig

MAC, PLAIN = "transformer,mac", "transformer"
"""Four layers of which two have a memory, and the same without."""
PIPELINE = "next batch"


def model_of(block: str) -> ModelConfig:
    """Width 256, depth 4, 4 heads of 64 in attention and memory, segments and chunks of 64 tokens."""
    memory = MemoryConfig(heads=4, head_dim=64, depth=2, expansion=4, chunk=64)
    return ModelConfig(block, dim=256, depth=4, attention="segmented", segment=64, memory=memory)


def experiment(block: str, length: int, batch: int) -> Experiment:
    """A training of `model_of(block)` with AdamW."""
    source = DataConfig(sequence=length, batch=batch)
    return Experiment(model=model_of(block), data=source, optim=OptimConfig(name="adamw"))


def memory_layer(length: int, batch: int, **changes: Any) -> Timer:
    """A memory with its projections and gates: its gradient in x [B, T, 256] and in every parameter.

    changes: of its `MemoryConfig`.
    """
    config = model_of("lmm")
    config = dataclasses.replace(config, memory=dataclasses.replace(config.memory, **changes))
    graphdef, params = nnx.split(MemoryLayer(config, rngs=nnx.Rngs(0)))
    x, cotangent = jax.random.normal(jax.random.key(1), (2, batch, length, 256))
    age = jnp.broadcast_to(jnp.arange(length), (batch, length))

    def loss(params: Any, x: Any) -> Any:
        layer = nnx.merge(graphdef, params)
        y, *_ = layer(x, layer.init_state(batch), age, valid=np.ones(length, bool))
        return (y * cotangent).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return device_timer(lambda: gradient(params, x))


def training_step(block: str, length: int, batch: int) -> Timer:
    """A training step of `experiment`."""
    return device_timer(fit.stepper(experiment(block, length, batch))[0])


def reader(length: int, batch: int) -> Callable[[], Any]:
    """Each call reads, cuts and shuffles one more batch, as in a training."""
    batches = data.train_batches(experiment(PLAIN, length, batch).data, seed=0)
    return lambda: next(batches)


def measure(blocks: Sequence[str], length: int, batch: int, count: int, rows: Rows) -> Report:
    """Steps of PLAIN, of PLAIN with one of these blocks in every other layer, and the input pipeline.

    Steps have the least FLOPs of their products, and the share of the matmul rate that they reach with them. The ratios
    are each model over PLAIN, and the next batch over each step. Raises ValueError for a block without a memory.
    """
    for block in blocks:
        if block not in MEMORY_BLOCKS:
            raise ValueError(f"no block with a memory named {block!r}; known are {', '.join(MEMORY_BLOCKS)}")
    patterns = [PLAIN, *(f"{PLAIN},{block}" for block in blocks)]
    subjects = {pattern: step(pattern, length, batch) for pattern in patterns}
    subjects[PIPELINE] = Subject(lambda: device_timer(reader(length, batch)), length * batch, {})
    pairs = {f"{pattern} over {PLAIN}": (pattern, PLAIN) for pattern in patterns[1:]}
    pairs |= {f"{PIPELINE} over a step of {pattern}": (PIPELINE, pattern) for pattern in patterns}
    return interleave.run(subjects, count, rows, what="bench model", pairs=pairs)


def step(block: str, length: int, batch: int) -> Subject:
    """`training_step`, with the least FLOPs of its products."""
    flops = least_flops_per_token(model_of(block), length)
    return Subject(lambda: training_step(block, length, batch), length * batch, {}, flops)
