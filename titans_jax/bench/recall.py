"""`bench recall`: whether models learn to recall facts from beyond attention's window, on how many seeds and when."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import data, metrics
from titans_jax.bench.fit import check, forget, program
from titans_jax.bench.report import Report, Rows, over_seeds
from titans_jax.config import Experiment
from titans_jax.results import Row
from titans_jax.training.step import TrainState

MODELS = (
    *(f"mac:{rule}" for rule in ("titans", "titans_linear", "yaad", "moneta", "omeganet", "ttt_mlp", "deltanet")),
    "mac:gated_deltanet",
    *(f"{block}:{rule}" for block in ("lmm", "mag", "mal") for rule in ("titans", "deltanet")),
    "transformer",
)
"""BLOCK:RULE, or a block without a memory: the control, whose window does not reach the facts."""
LEARNED, MEAN_OF, LAST = 0.5, 10, 20


def recall(base: Experiment, names: Sequence[str], seeds: int, rows: Rows) -> Report:
    """Each model trained on seeds 0, 1, ... of base, all seeds in one program.

    learned: the first step at which the mean loss of ten steps is under 0.5 nats; loss and accuracy: of the last twenty
    steps, whose rows are new. Raises ValueError or NotImplementedError for a model that cannot be trained.
    """
    experiments = {}
    for name in names:
        block, _, rule = name.partition(":")
        memory = replace(base.model.memory, rule=rule) if rule else base.model.memory
        experiments[name] = replace(base, model=replace(base.model, block=block, memory=memory))
        check(experiments[name])
    found = {}
    with metrics.Progress(base.train.steps * len(names), "training") as bar:
        for name, experiment in experiments.items():
            title = f"{name}, {seeds} seeds"
            if title in rows.rows:
                bar.advance(base.train.steps)
            found[name] = _shown(rows.get(title, partial(_train, experiment, seeds, bar)))
    return Report(found)


def _train(experiment: Experiment, seeds: int, bar: metrics.Progress) -> Row:
    """The steps to learn and the accuracy of each seed."""
    forget()
    parts, steps = program(experiment), experiment.train.steps
    params = jax.jit(jax.vmap(parts.definition.init))(jax.vmap(jax.random.key)(jnp.arange(seeds)))
    state = TrainState(params, jax.jit(jax.vmap(parts.optimizer.init))(params), jnp.arange(seeds))
    step = jax.jit(jax.vmap(parts.step), donate_argnums=0)
    losses, accuracies = [], []
    for batch in itertools.islice(_batches(experiment, seeds), steps):
        state, found = step(state, batch)
        losses.append(np.asarray(found["nll"]))
        accuracies.append(np.asarray(found["accuracy"]))
        bar.advance(1, loss=float(losses[-1].mean()))
    means = np.lib.stride_tricks.sliding_window_view(np.array(losses), min(MEAN_OF, steps), axis=0).mean(-1)
    learned = [int(np.argmax(mean < LEARNED)) + MEAN_OF if (mean < LEARNED).any() else None for mean in means.T]
    return {
        "learned": learned,
        "loss": np.mean(losses[-LAST:], 0).tolist(),
        "accuracy": np.mean(accuracies[-LAST:], 0).tolist(),
        "parameters": metrics.count(params) // seeds,
    }


def _batches(experiment: Experiment, seeds: int) -> Iterator[Any]:
    """Batches [seeds, B, T] of each seed's own rows."""
    every = [data.train_batches(experiment.data, seed=seed) for seed in range(seeds)]
    for batches in zip(*every, strict=True):
        yield {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _shown(row: Row) -> Row:
    learned: Any = row["learned"]
    return {
        "learned": f"{sum(step is not None for step in learned)} of {len(learned)}",
        "each": ", ".join("-" if step is None else str(step) for step in learned),
        **over_seeds("loss", row["loss"]),
        **over_seeds("accuracy", row["accuracy"]),
        "parameters": row["parameters"],
    }
