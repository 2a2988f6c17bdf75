"""`bench model`, `decode` and `peers`: training steps and next tokens of models with memories."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax import data
from titans_jax.bench import torch_peer
from titans_jax.bench.fit import step_timer
from titans_jax.bench.interleave import Plan, Subject, device_timer
from titans_jax.bench.processes import Timer, cores
from titans_jax.config import Experiment
from titans_jax.data import DataConfig
from titans_jax.decode import Sampling, stream
from titans_jax.nearest import not_named
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.nn.config import MEMORY_BLOCKS
from titans_jax.nn.memory import MemoryMixer
from titans_jax.optim import OptimConfig
from titans_jax.training.counts import flops_per_token
from titans_jax.training.step import define

MAC, PLAIN = "transformer,mac", "transformer"
"""Four layers of which two have a memory, and the same without."""
WRITTEN = 64
"""Tokens of a call: one chunk of the memory, so that the cost of a chunk's end counts in every call."""
CONTEXT = 4096
"""Tokens before the next token that is compared with titans-pytorch's."""
LENGTH = 1024
"""Tokens of a sequence whose training is compared with titans-pytorch's; its memory of chunk 1 reads a quarter."""


def model_of(block: str) -> ModelConfig:
    """Width 256, depth 4, 4 heads of 64 in attention and memory, segments and chunks of 64 tokens."""
    memory = MemoryConfig(heads=4, head_dim=64, depth=2, expansion=4, chunk=64)
    return ModelConfig(block, dim=256, depth=4, attention="segmented", segment=64, memory=memory)


def memory_layer(length: int, batch: int, **changes: Any) -> Timer:
    """A memory with its projections and gates: its gradient in x [B, T, 256] and in every parameter.

    changes: of its `MemoryConfig`.
    """
    config = model_of("lmm")
    config = replace(config, memory=replace(config.memory, **changes))
    graphdef, params = nnx.split(MemoryMixer(config, rngs=nnx.Rngs(0)))
    x, cotangent = jax.random.normal(jax.random.key(1), (2, batch, length, 256))
    age = jnp.broadcast_to(jnp.arange(length), (batch, length))

    def loss(params: Any, x: Any) -> Any:
        layer = nnx.merge(graphdef, params)
        y, *_ = layer(x, layer.init_state(batch), age, valid=np.ones(length, bool))
        return (y * cotangent).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return device_timer(lambda: gradient(params, x))


def training_step(block: str, length: int, batch: int) -> Timer:
    """A training step of `model_of(block)` with AdamW."""
    source = DataConfig(sequence=length, batch=batch)
    return step_timer(Experiment(model=model_of(block), data=source, optim=OptimConfig(name="adamw")))


def next_batch(length: int, batch: int) -> Timer:
    """One more batch, read, cut and shuffled as in a training."""
    batches = data.train_batches(DataConfig(sequence=length, batch=batch), seed=0)
    return device_timer(lambda: next(batches))


def next_tokens(model: ModelConfig | str, context: int, sequences: int = 1) -> Timer:
    """WRITTEN more tokens of each sequence at a call, greedily, as `generate` does, after random tokens that were read.

    model: or the block of `model_of`. It is not trained, since that is as fast.
    """
    config = model_of(model) if isinstance(model, str) else model
    definition = define(config)
    lm = definition.model(jax.jit(definition.init)(jax.random.key(0)))
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, (sequences, context), np.int32)
    following = stream(lm, prompt, Sampling(temperature=0))
    return device_timer(lambda: [next(following) for _ in range(WRITTEN)])


def model(blocks: Sequence[str], length: int, batch: int) -> Plan:
    """Steps of PLAIN, of PLAIN with one of these blocks in every other layer, and the input pipeline.

    Steps have the least FLOPs of their products, and the share of the matmul rate that they reach with them. The ratios
    are each model over PLAIN, and the next batch over each step. Raises ValueError for a block without a memory.
    """
    for block in blocks:
        if block not in MEMORY_BLOCKS:
            raise not_named("block with a memory", block, MEMORY_BLOCKS)
    size, read = dict(length=length, batch=batch), "next batch"
    subjects = {}
    for block in (PLAIN, *(f"{PLAIN},{block}" for block in blocks)):
        least = flops_per_token(model_of(block), length, least=True)
        subjects[block] = Subject(training_step, {"block": block, **size}, length * batch, least)
    pairs = {f"{block} over {PLAIN}": (block, PLAIN) for block in subjects if block != PLAIN}
    pairs |= {f"{read} over a step of {block}": (read, block) for block in subjects}
    return Plan(subjects | {read: Subject(next_batch, size, length * batch)}, pairs)


def decode(contexts: Sequence[int], sequences: Sequence[int]) -> Plan:
    """Next tokens of MAC after each context, for each number of sequences at once; the ratios are to the first."""
    subjects = {
        f"{number} at once after {context:,}": Subject(
            next_tokens, {"model": MAC, "context": context, "sequences": number}, number * WRITTEN
        )
        for context in contexts
        for number in sequences
    }
    first, *others = subjects
    return Plan(subjects, {f"{name} over {first}": (name, first) for name in others})


OVER = {
    "titans-pytorch memory, chunk_size 1": ("memory of titans-pytorch's parts", "memory as our models have it"),
    "titans-pytorch memory, chunk_size 64": ("memory of titans-pytorch's parts", "memory as our models have it"),
    "titans-pytorch MAC training step": ("MAC training step",),
    "titans-pytorch MAC next token": ("MAC next token",),
}
"""What of titans-pytorch is compared with what of ours. With chunk_size 1 its memory computes the same recurrence as
ours, otherwise it takes one momentum step a chunk. It has no convolution, and its forgetting decays to 0."""


def peers(python: str, batch: int) -> Plan:
    """Both libraries, each in processes of its own; the ratios are titans-pytorch's seconds a token over ours.

    Width 256, 4 heads of 64, memories of depth 2 and expansion 4, chunks and segments of 64. Raises ValueError, in one
    line, for an interpreter without titans-pytorch.
    """
    libraries = _version(python)
    here, tokens, long = sys.executable, LENGTH * batch, {"length": LENGTH, "batch": batch}
    plain = {"conv": 0, "to_origin": False, "relative_read": False, "sized_values": False, **long}
    exact, coarse = {"chunk": 1, "length": LENGTH // 4, "batch": batch}, {"chunk": 64, **long}
    subjects = {
        "memory as our models have it": Subject(memory_layer, long, tokens, python=here),
        "memory of titans-pytorch's parts": Subject(memory_layer, plain, tokens, python=here),
        "titans-pytorch memory, chunk_size 1": Subject(torch_peer.memory, exact, LENGTH // 4 * batch, python=python),
        "titans-pytorch memory, chunk_size 64": Subject(torch_peer.memory, coarse, tokens, python=python),
        "MAC training step": Subject(training_step, {"block": MAC, **long}, tokens, python=here),
        "titans-pytorch MAC training step": Subject(torch_peer.training_step, long, tokens, python=python),
        "MAC next token": Subject(next_tokens, {"model": MAC, "context": CONTEXT}, WRITTEN, python=here),
        "titans-pytorch MAC next token": Subject(torch_peer.tokens, {"context": CONTEXT}, WRITTEN, python=python),
    }
    pairs = {f"{name} over {ours}": (name, ours) for name, each in OVER.items() for ours in each}
    return Plan(subjects, pairs, (f"{libraries}; each library on {cores()} cores",))


def _version(python: str) -> str:
    """The versions of torch and titans-pytorch there. Raises ValueError, in one line, if one is missing."""
    code = "import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in ('torch', 'titans-pytorch')))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{python}: no such interpreter: {error.strerror}") from None
    if done.returncode:
        raise ValueError(f"{python} has no titans-pytorch; pip install titans-jax[parity], or name another by --python")
    return done.stdout.strip()
