"""Short trainings without checkpoints, at several learning rates and seeds: the rows of a comparison."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax

from titans_jax import config as configs
from titans_jax import data
from titans_jax.bench.interleave import device_timer
from titans_jax.bench.processes import Timer
from titans_jax.bench.report import Rows
from titans_jax.config import Experiment, TrainConfig
from titans_jax.evaluation import Scores, score
from titans_jax.metrics import Progress
from titans_jax.nn import ModelConfig
from titans_jax.optim import OptimConfig
from titans_jax.results import Row
from titans_jax.training import loop
from titans_jax.training.placement import Placement
from titans_jax.training.step import Definition, TrainState, define, init_state, make_step, optimizer_of


class Program(NamedTuple):
    """A model, its optimizer and their training step, compiled once for all seeds."""

    definition: Definition
    optimizer: optax.GradientTransformation
    step: jax.stages.Wrapped


def program(experiment: Experiment) -> Program:
    """The program of an experiment; experiments that differ only in the seed share it."""
    return _program(experiment.model, experiment.optim, replace(experiment.train, seed=0))


@functools.lru_cache(maxsize=8)
def _program(model: ModelConfig, optim: OptimConfig, train: TrainConfig) -> Program:
    definition, optimizer = define(model), optimizer_of(model, optim, train.steps)
    return Program(definition, optimizer, make_step(definition.graphdef, optimizer, train))


def forget() -> None:
    """Drop every compiled program; otherwise a process that compiles many models keeps them all."""
    _program.cache_clear()
    jax.clear_caches()


def step_timer(experiment: Experiment, times: int | None = None) -> Timer:
    """A timer of training steps on the first batch, `times` in a sample (None: as many as fill it).

    step_bytes is what the compiled step holds at once on a device: arguments, results and temporaries; absent where
    the backend does not say.
    """
    placement, parts = Placement.of(experiment.mesh), program(experiment)
    with placement.active():
        batch = placement.device_batch(next(data.train_batches(experiment.data, seed=0)), experiment.data)
        state = init_state(parts.definition, parts.optimizer, placement, experiment.train.seed)
        compiled = parts.step.lower(state, batch).compile()

    def step() -> Any:
        nonlocal state
        with placement.active():
            state, _ = compiled(state, batch)
        return state.params

    take, found = device_timer(step, times), {}
    if (memory := compiled.memory_analysis()) is not None:
        used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        found["step_bytes"] = used + memory.temp_size_in_bytes
    return lambda: {**take(), **found}


class Fit(NamedTuple):
    """losses, seconds: of every step; only the last loss may be not finite, and the first step compiles."""

    losses: list[float]
    seconds: list[float]
    tokens: int  # of a step
    definition: Definition
    params: Any

    @property
    def finite(self) -> bool:
        """Whether every loss is finite."""
        return math.isfinite(self.losses[-1])

    @property
    def model(self) -> Any:
        """The trained model."""
        return self.definition.model(self.params)


def check(experiment: Experiment) -> None:
    """Raise ValueError or NotImplementedError for what cannot be trained."""
    vocabulary = data.load_tokenizer(experiment.data.tokenizer).vocab_size
    configs.validate(experiment, vocabulary=vocabulary, shards=Placement.of(experiment.mesh).shards)


def fit(experiment: Experiment, bar: Progress, after_step: Callable[[int, Any, Any], None] | None = None) -> Fit:
    """Train for train.steps steps, on the batches of `training.run`, or until a loss is not finite.

    after_step: called with the step's number, the parameters and the step's metrics if the loss is finite; its time is
    not the step's. Raises what `check` raises.
    """
    check(experiment)
    placement, parts = Placement.of(experiment.mesh), program(experiment)
    tokens = experiment.data.batch * experiment.data.sequence
    batches = data.train_batches(experiment.data, seed=experiment.train.seed)
    losses, seconds = list[float](), list[float]()
    started, metrics = 0.0, {}

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        nonlocal started
        batch = placement.device_batch(batch, experiment.data)
        started = time.perf_counter()
        return parts.step(state, batch)

    def record(n: int, step_metrics: Any) -> None:
        nonlocal metrics
        metrics = step_metrics
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - started)
        bar.advance(1, tokens=tokens, loss=losses[-1])

    def pause(n: int, state: TrainState, stopping: bool) -> None:
        if after_step is not None and math.isfinite(losses[-1]):
            after_step(n, state.params, metrics)

    limited = itertools.islice(batches, experiment.train.steps)
    finite = itertools.takewhile(lambda _: not losses or math.isfinite(losses[-1]), limited)
    with placement.active():
        state = init_state(parts.definition, parts.optimizer, placement, experiment.train.seed)
        # Committed to devices, as the state that a step returns is; otherwise the second step compiles again.
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, state))
        # With a pause after every step, each step is timed alone.
        state = loop.train(step, state, finite, record=record, due=lambda n: True, pause=pause)
    return Fit(losses, seconds, tokens, parts.definition, state.params)


def held_out(experiment: Experiment, model: Any) -> Scores:
    """The scores on train.eval_batches batches of held-out text."""
    placement = Placement.of(experiment.mesh)
    batches = data.held_out_batches(experiment.data, limit=experiment.train.eval_batches)
    lengths = data.load_tokenizer(experiment.data.tokenizer).byte_lengths
    with placement.active():
        return score(model, batches, lengths, sharding=placement.batch)


def train_all(
    experiments: Mapping[str, Experiment],
    rates: Sequence[float],
    seeds: Sequence[int],
    rows: Rows,
    train: Callable[[Experiment, Progress], Row],
) -> dict[str, Row]:
    """Of each experiment: rate, and trained, the rows of its trainings at this rate with each seed.

    Of several rates, the same for all, each takes the one of the least held-out loss on seed 0, which should not be
    among the seeds; edge says whether a wider grid might have a better one. Without rates it is the experiment's own.
    train: an experiment -> its row, with "loss" where there are several rates, None where it was not finite. Rows that
    are there are not made again. Raises what `check` raises, before anything is trained.
    """
    for experiment in experiments.values():
        check(experiment)
    found: dict[str, Row] = {}
    grid = rates if len(rates) > 1 else ()
    total = sum(experiment.train.steps for experiment in experiments.values()) * (len(grid) + len(seeds))
    compiled = None
    with Progress(total, "training") as bar:
        for name, experiment in experiments.items():
            if compiled != (experiment.model, experiment.optim):
                forget()
                compiled = experiment.model, experiment.optim

            def row(rate: float, seed: int, name: str = name, experiment: Experiment = experiment) -> Row:
                optim, train_ = replace(experiment.optim, peak_rate=rate), replace(experiment.train, seed=seed)
                title = f"{name} rate {rate:g} seed {seed}"
                if title in rows.rows:
                    bar.advance(experiment.train.steps)
                return rows.get(title, lambda: train(replace(experiment, optim=optim, train=train_), bar))

            found[name] = {"rate": rates[0] if rates else experiment.optim.peak_rate}
            if grid:
                tried: dict[float, float | None] = {rate: row(rate, 0)["loss"] for rate in grid}
                best = min(grid, key=lambda rate: math.inf if (loss := tried[rate]) is None else loss)
                found[name] = {"rate": best, "edge": "yes" if best in (min(grid), max(grid)) else "no"}
            found[name]["trained"] = [row(found[name]["rate"], seed) for seed in seeds]
    forget()
    return found
