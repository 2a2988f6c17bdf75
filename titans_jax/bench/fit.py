"""One short training without checkpoints: each row of a comparison is one of these."""

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from titans_jax import config as configs
from titans_jax import data
from titans_jax.config import Experiment, TrainConfig
from titans_jax.evaluation import Scores, score
from titans_jax.metrics import Progress
from titans_jax.nn import ModelConfig
from titans_jax.optim import OptimConfig
from titans_jax.training import loop
from titans_jax.training.placement import Placement
from titans_jax.training.step import Definition, TrainState, define, init_state, make_step, optimizer_of


class Fit(NamedTuple):
    """losses: of every step; only the last may be not finite. seconds: of every step; the first one compiles."""

    losses: list[float]
    seconds: list[float]
    tokens: int
    definition: Definition
    params: Any

    @property
    def finite(self) -> bool:
        """Whether every loss is finite."""
        return math.isfinite(self.losses[-1])

    @property
    def tokens_per_second(self) -> float:
        """Of the median step."""
        return self.tokens / statistics.median(self.seconds[1:] or self.seconds)


class Program(NamedTuple):
    """A model, its optimizer and their step, compiled once for all seeds and peak rates."""

    definition: Definition
    optimizer: optax.GradientTransformation
    step: jax.stages.Wrapped

    def start(self, experiment: Experiment, placement: Placement) -> TrainState:
        """The state before the first step."""
        state = init_state(self.definition, self.optimizer, placement, experiment.train.seed)
        inner, rate = state.optimizer
        state = state._replace(optimizer=(inner, jnp.full_like(rate, experiment.optim.peak_rate)))
        # Committed to devices, as the state that a step returns is; otherwise the second step compiles again.
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state))


def program(experiment: Experiment) -> Program:
    """The program of an experiment; experiments that differ only in seed and peak rate share it."""
    train = dataclasses.replace(experiment.train, seed=0)
    return _program(experiment.model, dataclasses.replace(experiment.optim, peak_rate=1.0), train)


def stepper(experiment: Experiment) -> tuple[Callable[[], Any], jax.stages.Compiled]:
    """A function that takes one more training step on the first batch at every call; and the compiled step."""
    placement, parts = Placement.of(experiment.mesh), program(experiment)
    with placement.active():
        batch = placement.device_batch(next(data.train_batches(experiment.data, seed=0)), experiment.data)
        state = parts.start(experiment, placement)
        compiled = parts.step.lower(state, batch).compile()

    def step() -> Any:
        nonlocal state
        with placement.active():
            state, _ = compiled(state, batch)
        return state.params

    return step, compiled


@functools.lru_cache(maxsize=8)
def _program(model: ModelConfig, config: OptimConfig, train: TrainConfig) -> Program:
    definition, optimizer = define(model), _rated(optimizer_of(model, config, train.steps))
    return Program(definition, optimizer, make_step(definition.graphdef, optimizer, train))


def _rated(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Scale the updates of a transformation of peak rate 1 by the rate in its state, (inner, rate)."""

    def update(gradients: Any, state: tuple[Any, Array], params: Any) -> tuple[Any, Any]:
        updates, state_ = inner.update(gradients, state[0], params)
        return jax.tree.map(lambda u: state[1].astype(u.dtype) * u, updates), (state_, state[1])

    return optax.GradientTransformation(lambda params: (inner.init(params), jnp.ones(())), update)


def forget() -> None:
    """Drop every compiled program; otherwise a process that compiles many models keeps them all."""
    _program.cache_clear()
    jax.clear_caches()


def fit(experiment: Experiment, bar: Progress, after_step: Callable[[int, Any, Any], None] | None = None) -> Fit:
    """Train for train.steps steps, on the batches of `training.run`, or until a loss is not finite.

    after_step: called with the step's number, the parameters and the step's metrics if the loss is finite; its time is
    not the step's. Raises ValueError and NotImplementedError for what cannot be trained.
    """
    placement = Placement.of(experiment.mesh)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    configs.validate(experiment, vocabulary=tokenizer.vocab_size, shards=placement.shards)
    batches = data.train_batches(experiment.data, seed=experiment.train.seed)
    parts, tokens = program(experiment), experiment.data.batch * experiment.data.sequence
    losses: list[float] = []
    seconds: list[float] = []
    started, metrics = 0.0, {}

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        nonlocal started
        batch = placement.device_batch(batch, experiment.data)
        started = time.perf_counter()
        return parts.step(state, batch)

    def record(n: int, step_metrics: Any) -> None:
        nonlocal metrics
        losses.append(float(step_metrics["loss"]))
        seconds.append(time.perf_counter() - started)
        bar.advance(1, tokens=tokens, loss=losses[-1])
        metrics = step_metrics

    def pause(n: int, state: TrainState, stopping: bool) -> None:
        if after_step is not None and math.isfinite(losses[-1]):
            after_step(n, state.params, metrics)

    limited = itertools.islice(batches, experiment.train.steps)
    finite = itertools.takewhile(lambda _: not losses or math.isfinite(losses[-1]), limited)
    with placement.active():
        state = parts.start(experiment, placement)
        # With a pause after every step, each step is timed alone.
        state = loop.train(step, state, finite, record=record, due=lambda n: True, pause=pause)
    return Fit(losses, seconds, tokens, parts.definition, state.params)


def model_of(done: Fit) -> Any:
    """The trained model."""
    return done.definition.model(done.params)


def held_out(experiment: Experiment, model: Any) -> Scores:
    """The scores on train.eval_batches batches of held-out text."""
    placement = Placement.of(experiment.mesh)
    batches = data.held_out_batches(experiment.data, limit=experiment.train.eval_batches)
    lengths = data.load_tokenizer(experiment.data.tokenizer).byte_lengths
    with placement.active():
        return score(model, batches, lengths, sharding=placement.batch)
