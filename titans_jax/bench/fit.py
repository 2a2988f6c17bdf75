"""One short training from scratch, without checkpoints: what each row of a benchmark is made of."""

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
from flax import nnx
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
from titans_jax.training.step import Definition, TrainState, begin, define, make_step, optimizer_of


class Fit(NamedTuple):
    """losses: of every step, the last one perhaps not finite. seconds: each step's; the first one compiles."""

    losses: list[float]
    seconds: list[float]
    tokens: int
    definition: Definition
    params: Any

    @property
    def finite(self) -> bool:
        """Whether every step's loss was a number."""
        return math.isfinite(self.losses[-1])

    @property
    def tokens_per_second(self) -> float:
        """Of the median step."""
        return self.tokens / statistics.median(self.seconds[1:] or self.seconds)


class Program(NamedTuple):
    """A model, its optimizer and their step: compiled once for every seed and every peak rate."""

    definition: Definition
    optimizer: optax.GradientTransformation
    step: jax.stages.Wrapped

    def start(self, experiment: Experiment, placement: Placement) -> TrainState:
        """The state before the first step."""
        state = begin(self.definition, self.optimizer, placement, experiment.train.seed)
        inner, rate = state.optimizer
        state = state._replace(optimizer=(inner, jnp.full_like(rate, experiment.optim.peak_rate)))
        # Committed, as what a step returns is, or the second step would compile again.
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state))


def program(experiment: Experiment) -> Program:
    """The program that an experiment runs; experiments that differ in seed and peak rate share it."""
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
    """The updates of a transformation built for peak rate 1 times a peak rate that its state holds: (inner, rate)."""

    def update(gradients: Any, state: tuple[Any, Array], params: Any) -> tuple[Any, Any]:
        updates, state_ = inner.update(gradients, state[0], params)
        return jax.tree.map(lambda u: state[1].astype(u.dtype) * u, updates), (state_, state[1])

    return optax.GradientTransformation(lambda params: (inner.init(params), jnp.ones(())), update)


def forget() -> None:
    """Let go of every compiled program: a process that compiles one model after another would hold them all."""
    _program.cache_clear()
    jax.clear_caches()


Look = Callable[[int, Any, Any], None]


def fit(experiment: Experiment, bar: Progress, look: Look | None = None) -> Fit:
    """Train for train.steps steps, on the numbers that `training.run` would train on, or until a loss is not finite.

    look: called with the step's number, the parameters and the step's metrics after each step whose loss is finite;
    its time is not the step's. Raises ValueError and NotImplementedError for what cannot be trained.
    """
    placement = Placement.of(experiment.mesh)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    configs.validate(experiment, vocabulary=tokenizer.vocab_size, shards=placement.shards)
    batches = data.train_batches(experiment.data, seed=experiment.train.seed)
    parts, tokens = program(experiment), experiment.data.batch * experiment.data.sequence
    losses: list[float] = []
    seconds: list[float] = []
    begun, seen = 0.0, {}

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        nonlocal begun
        batch = placement.device_batch(batch, experiment.data)
        begun = time.perf_counter()
        return parts.step(state, batch)

    def record(n: int, found: Any) -> None:
        nonlocal seen
        losses.append(float(found["loss"]))
        seconds.append(time.perf_counter() - begun)
        bar.advance(1, tokens=tokens, loss=losses[-1])
        seen = found

    def pause(n: int, state: TrainState, stopping: bool) -> None:
        if look is not None and math.isfinite(losses[-1]):
            look(n, state.params, seen)

    limited = itertools.islice(batches, experiment.train.steps)
    finite = itertools.takewhile(lambda _: not losses or math.isfinite(losses[-1]), limited)
    with placement.active():
        state = parts.start(experiment, placement)
        # a pause after every step, so that the clock takes whole steps
        state = loop.train(step, state, finite, record=record, due=lambda n: True, pause=pause)
    return Fit(losses, seconds, tokens, parts.definition, state.params)


def model_of(done: Fit) -> Any:
    """The trained model."""
    return nnx.merge(done.definition.graphdef, done.params)


def held_out(experiment: Experiment, model: Any) -> Scores:
    """What `score` says of train.eval_batches batches of held-out text."""
    placement = Placement.of(experiment.mesh)
    batches = data.held_out_batches(experiment.data, limit=experiment.train.eval_batches)
    lengths = data.load_tokenizer(experiment.data.tokenizer).byte_lengths
    with placement.active():
        return score(model, batches, lengths, sharding=placement.batch)
