"""What is timed of our models: a memory layer, a training step, the next token. Each function returns a timer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax.config import Experiment
from titans_jax.data import DataConfig
from titans_jax.memory import Span
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.nn.memory import MemoryLayer
from titans_jax.optim import OptimConfig
from titans_jax.speed.clock import Timer, timer
from titans_jax.speed.rounds import done
from titans_jax.training.bench import fit
from titans_jax.training.placement import Placement

MAC, PLAIN = "transformer,mac", "transformer"
"""Four layers of which two have a memory, and the same without."""


def model_of(block: str, **changes: Any) -> ModelConfig:
    """Width 256, depth 4, 4 heads of 64 in attention and memory, segments and chunks of 64 tokens."""
    memory = MemoryConfig(heads=4, head_dim=64, depth=2, expansion=4, chunk=64)
    return ModelConfig(block, dim=256, depth=4, attention="segmented", segment=64, memory=memory, **changes)


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
        y, *_ = layer(x, layer.init_state(batch), age, span=Span(0, length))
        return (y * cotangent).sum()

    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return timer(done(lambda: slope(params, x)))


def training_step(block: str, length: int, batch: int) -> Timer:
    """A training step with AdamW on tokens [B, T] drawn at random."""
    return timer(done(stepper(experiment(block, length, batch))))


def experiment(block: str, length: int, batch: int) -> Experiment:
    """A training of `model_of(block)`."""
    source = DataConfig(sequence=length, batch=batch)
    return Experiment(model=model_of(block), data=source, optim=OptimConfig(name="adamw"))


def stepper(experiment: Experiment) -> Callable[[], Any]:
    """One more step at every call, on one batch of random tokens."""
    placement = Placement.of(experiment.mesh)
    shape = experiment.data.batch, experiment.data.sequence
    tokens = np.random.default_rng(0).integers(0, experiment.model.vocab_size, shape, np.int32)
    local = {"inputs": tokens, "targets": tokens, "mask": np.ones(shape, np.float32), "reset": np.zeros(shape, bool)}
    with placement.active():
        step = fit.stepper(experiment, placement, placement.device_batch(local, experiment.data))

    def placed() -> Any:
        with placement.active():
            return step()

    return placed
