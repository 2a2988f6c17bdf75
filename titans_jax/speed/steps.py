"""Training steps: a model with memories against the same without, and the input pipeline beside them."""

from collections.abc import Callable, Sequence
from typing import Any

from titans_jax import data
from titans_jax.nn.config import MEMORY_BLOCKS
from titans_jax.speed import models, rounds
from titans_jax.speed.clock import timer
from titans_jax.speed.rounds import Subject, done
from titans_jax.speed.table import Report
from titans_jax.training.bench import Rows
from titans_jax.training.bench.match import least_flops_per_token

PIPELINE = "next batch"


def measure(blocks: Sequence[str], length: int, batch: int, count: int, rows: Rows) -> Report:
    """Steps of a model in which every other layer is one of these blocks, of one without, and the input pipeline.

    Beside each step are the least FLOPs of its products, and the share of the matmul rate that it reaches with them.
    How they compare: each model over models.PLAIN, and the next batch over each model's step. Raises ValueError for a
    name that is no block with a memory.
    """
    for block in blocks:
        if block not in MEMORY_BLOCKS:
            raise ValueError(f"no block with a memory named {block!r}; known are {', '.join(MEMORY_BLOCKS)}")
    patterns = [models.PLAIN, *(f"{models.PLAIN},{block}" for block in blocks)]
    subjects = {pattern: step(pattern, length, batch) for pattern in patterns}
    subjects[PIPELINE] = Subject(lambda: timer(done(reader(length, batch))), length * batch, {})
    measured = rounds.run(subjects, count, rows, what="bench model")
    pairs = {f"{pattern} over {models.PLAIN}": (pattern, models.PLAIN) for pattern in patterns[1:]}
    pairs |= {f"{PIPELINE} over a step of {pattern}": (PIPELINE, pattern) for pattern in patterns}
    return Report(measured.found(), measured.ratios(pairs))


def step(block: str, length: int, batch: int) -> Subject:
    """A training step of `models.model_of(block)`, with the least FLOPs of its products."""
    flops = least_flops_per_token(models.model_of(block), length)
    return Subject(lambda: models.training_step(block, length, batch), length * batch, {}, flops)


def reader(length: int, batch: int) -> Callable[[], Any]:
    """One more batch of a training at every call: read, cut and shuffled as `training.run` has it."""
    batches = data.train_batches(models.experiment(models.PLAIN, length, batch).data, seed=0)
    return lambda: next(batches)
