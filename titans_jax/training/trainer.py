"""A training run: from an Experiment to a trained model on disk, through signals, kills and resumes."""

import contextlib
import itertools
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from titans_jax import config as configs
from titans_jax import data, files, metrics, optim
from titans_jax.checkpoint import Checkpoints
from titans_jax.config import Experiment
from titans_jax.evaluation import evaluate
from titans_jax.evaluation.ablation import frozen
from titans_jax.nn import LM
from titans_jax.training import loop
from titans_jax.training.errors import Diverged, Stopped, memory_advice, stop_requested, stopping
from titans_jax.training.placement import Placement
from titans_jax.training.recalled import baseline_of, figures, tells_facts
from titans_jax.training.report import finish
from titans_jax.training.step import TrainState, define, init_state, make_step, optimizer_of
from titans_jax.waiting import waiting


@dataclass(frozen=True)
class Session:
    """What a run holds besides its TrainState."""

    experiment: Experiment
    placement: Placement
    tokenizer: data.Tokenizer
    graphdef: Any
    optimizer: optax.GradientTransformation
    batches: grain.DatasetIterator
    checkpoints: Checkpoints
    log: metrics.Log


def run(experiment: Experiment, *, resume: bool = True) -> dict[str, Any]:
    """Train, or go on with, an experiment; everything is written below `experiment.output`.

    resume: go on from the newest checkpoint there, if there is one; False removes what an earlier run left.
    Returns what result.json holds. A signal ends the run after the step it comes in.

    Raises ValueError for a configuration that cannot work, or that is not the one of the run to go on with; Diverged;
    Stopped; CheckpointError when there are checkpoints and none can be used.
    """
    session, model, measured = _trained(experiment := _with_steps(experiment), resume)
    found = None
    if tells_facts(experiment.data):
        remembers = experiment.model.pattern != ("transformer",)
        models = {"memory": model, "memory frozen": frozen(model)} if remembers else {"transformer": model}
        if (baseline := baseline_of(experiment)) is not None:
            models[baseline.name] = _trained(baseline, resume)[1]
        found = figures(experiment, models)
    return finish(experiment, model, session.tokenizer, session.checkpoints, measured, found)


def _trained(experiment: Experiment, resume: bool) -> tuple[Session, LM, dict[str, Any]]:
    """The session of a run at its end, its model on one device, and what its last evaluation measured."""
    with memory_advice():
        with stopping(), waiting(f"opening {experiment.output}"):
            session, state, start = _open(experiment, resume)
        try:
            with session.placement.active():
                if start < experiment.train.steps:
                    state, evaluation, compile_seconds = _train(session, state, start)
                else:  # it was killed after its last step, or had ended: only what is left at the end is made again
                    evaluation, compile_seconds = _evaluate(session, state), 0.0
        finally:
            session.log.close()
        params = jax.device_put(jax.device_get(state.params), jax.local_devices()[0])
        return session, nnx.merge(session.graphdef, params), {**evaluation, "compile_seconds": compile_seconds}


def _with_steps(experiment: Experiment) -> Experiment:
    """The experiment with its epochs as steps."""
    epochs = experiment.train.epochs
    if epochs is None:
        return experiment
    if not epochs > 0:
        raise ValueError(f"train.epochs is {epochs}; it must be above 0, or None to take train.steps")
    steps = math.ceil(epochs * data.steps_an_epoch(experiment.data))
    return replace(experiment, train=replace(experiment.train, steps=steps, epochs=None))


def _open(experiment: Experiment, resume: bool) -> tuple[Session, TrainState, int]:
    """Everything before the first step; what is wrong with the configuration shows here, before compiling."""
    files.check_folder(experiment.output)
    placement = Placement.of(experiment.mesh)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    configs.validate(experiment, vocabulary=tokenizer.vocab_size, shards=placement.shards)
    batches = data.train_batches(
        experiment.data,
        seed=experiment.train.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    folder = experiment.output / "checkpoints"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    checkpoints = Checkpoints(folder, keep=experiment.train.keep)
    going_on = bool(checkpoints.steps())
    if going_on:
        saved, now = checkpoints.meta("last")["experiment"], configs.to_json(experiment)
        require_same_run(experiment.output, saved, now, option="--output-dir", may_change=_MAY_CHANGE)
    model = define(experiment.model)
    optimizer = optimizer_of(experiment.model, experiment.optim, experiment.train.steps)
    start = 0
    with placement.active():
        state = init_state(model, optimizer, placement, experiment.train.seed)
        if going_on:
            arrays, _, start = checkpoints.restore(state._asdict(), data=batches)
            state = TrainState(**arrays)
    if start > experiment.train.steps:
        raise ValueError(f"{experiment.output} holds a run of {start} steps; train.steps is {experiment.train.steps}")
    log = metrics.Log(experiment.output, step=start or None)
    return Session(experiment, placement, tokenizer, model.graphdef, optimizer, batches, checkpoints, log), state, start


# What decides no number of the run, and its length, which moves the schedule from here on as asked.
_MAY_CHANGE = ("name", "output_dir", "mesh", "data.workers", "data.cache_dir") + tuple(
    f"train.{name}" for name in ("steps", "log_every", "eval_", "save_every", "keep", "prompt", "sample", "baseline")
)


def require_same_run(
    folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any], *, option: str, may_change: tuple[str, ...] = ()
) -> None:
    """Raise ValueError where a configuration differs from the saved one, except in fields that begin as `may_change`.

    option: the command's option that names another folder.
    """
    for path, old, new in configs.changes(saved, now):
        if not path.startswith(may_change):
            raise ValueError(
                f"{folder} holds a run with {path} = {old}, not {new}; "
                f"give another {option}, or --no-resume to start over"
            )


def _train(session: Session, state: TrainState, start: int) -> tuple[TrainState, dict[str, Any], float]:
    """Steps start + 1 to the last; the state, the last evaluation, and the seconds that compiling took."""
    train, config, placement = session.experiment.train, session.experiment.data, session.placement
    started = time.perf_counter()
    with stopping(), metrics.Progress(1, f"compiling {session.experiment.name}") as bar:
        lowered = make_step(session.graphdef, session.optimizer, train).lower(state, placement.abstract_batch(config))
        step = lowered.compile()
        bar.advance()
    compile_seconds = time.perf_counter() - started
    _announce(session, state, start, compile_seconds)
    evaluation: dict[str, Any] = {}

    def advance(state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, dict[str, Any]]:
        state, step_metrics = step(state, placement.device_batch(batch, config))
        return state, step_metrics | {"tokens_a_byte": _tokens_a_byte(batch, session.tokenizer)}

    def evaluating(n: int) -> bool:
        return n % train.eval_every == 0 or n == train.steps

    def pause(n: int, state: TrainState, stopping: bool) -> None:
        with recorder.pause():
            if evaluating(n):
                evaluation.update(_evaluate(session, state))
                session.log.write(n, "held_out", {name: evaluation[name] for name in _CURVES})
                if not math.isfinite(evaluation["loss"]):
                    raise _diverged(n, "held-out loss not finite", session)
            _save(session, state, n, evaluation if evaluating(n) else None)
        if stopping and n < train.steps:
            raise Stopped(f"stopped after step {n}, which is saved in {session.checkpoints.directory}")

    with stop_requested() as stop, metrics.Progress(train.steps, session.experiment.name, initial=start) as bar:
        recorder = _Recorder(session, bar)
        state = loop.train(
            advance,
            state,
            itertools.islice(session.batches, train.steps - start),
            start=start,
            record=recorder.record,
            due=lambda n: evaluating(n) or n % train.save_every == 0,
            pause=pause,
            stop=stop,
        )
    return state, evaluation, compile_seconds


_CURVES = ("loss", "perplexity", "bits_per_byte", "accuracy")


class _Recorder:
    """Takes each step's metrics to the log and the progress bar, and keeps the time that steps took."""

    def __init__(self, session: Session, bar: metrics.Progress) -> None:
        self.session, self.bar = session, bar
        self.tokens = session.experiment.data.batch * session.experiment.data.sequence
        self.rate = optim.learning_rate(session.experiment.optim, session.experiment.train.steps)
        self.steps, self.seconds, self.mark = 0, 0.0, time.perf_counter()

    def record(self, n: int, device_metrics: Mapping[str, Any]) -> None:
        """Wait for step n's metrics, check that they are finite, and log them."""
        values = jax.device_get(dict(device_metrics))
        now = time.perf_counter()
        self.steps, self.seconds, self.mark = self.steps + 1, self.seconds + now - self.mark, now
        memory = values.pop("memory")
        _require_finite(n, values, memory, self.session)
        values["bits_per_byte"] = values.pop("nll") / math.log(2) * values.pop("tokens_a_byte")
        self.bar.advance(1, tokens=self.tokens, loss=float(values["loss"]))
        train = self.session.experiment.train
        if n % train.log_every == 0 or n in (1, train.steps):
            values |= {"learning_rate": float(self.rate(n - 1)), "tokens_per_second": self.tokens_per_second}
            self.session.log.write(n, "train", values)
            if memory is not None:
                self.session.log.write(n, "memory", metrics.telemetry(memory))

    @property
    def tokens_per_second(self) -> float:
        """Over the steps so far, without compiling, evaluating and saving."""
        return self.steps * self.tokens / max(self.seconds, 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside out of the steps' time."""
        yield
        self.mark = time.perf_counter()


def _tokens_a_byte(batch: Mapping[str, np.ndarray], tokenizer: data.Tokenizer) -> float:
    """Targets that count over the bytes of text they stand for."""
    targets = batch["targets"][batch["mask"] != 0]
    return len(targets) / max(int(tokenizer.byte_lengths[targets].sum()), 1)


def _require_finite(n: int, values: Mapping[str, Any], memory: Any, session: Session) -> None:
    wrong = [name for name in ("loss", "grad_norm") if not np.isfinite(values[name])]
    if not wrong:
        return
    bad = [name for name, value in metrics.telemetry(memory).items() if not np.isfinite(value)]
    where = f"; the first of the memory's numbers that is not is {bad[0]}" if bad else ""
    raise _diverged(n, f"{' and '.join(wrong)} not finite{where}", session)


def _diverged(n: int, why: str, session: Session) -> Diverged:
    steps = session.checkpoints.steps()
    kept = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    return Diverged(
        f"diverged at step {n}: {why}; {kept}; "
        "a lower --optim.peak-rate, a longer --optim.warmup or a smaller --optim.clip may help"
    )


def _evaluate(session: Session, state: TrainState) -> dict[str, Any]:
    """The model on held-out text."""
    train, source = session.experiment.train, session.experiment.data
    return evaluate(
        nnx.merge(session.graphdef, state.params),
        data.held_out_batches(replace(source, batch=train.eval_batch or source.batch), limit=train.eval_batches),
        session.tokenizer.byte_lengths,
        sharding=session.placement.batch,
    )


def _save(session: Session, state: TrainState, n: int, evaluation: dict[str, Any] | None) -> None:
    try:
        session.checkpoints.save(
            n,
            state._asdict(),
            data=session.batches,
            meta={
                "experiment": configs.to_json(session.experiment),
                "evaluation": evaluation,
                "corpus": data.provenance(session.experiment.data.corpus),
            },
            score=evaluation["bits_per_byte"] if evaluation else None,
        )
    except FloatingPointError as error:
        raise _diverged(n, str(error), session) from error


def _announce(session: Session, state: TrainState, start: int, compile_seconds: float) -> None:
    parameters = metrics.count(state.params)
    print(
        f"{session.experiment.name}: {session.experiment.model.block}, {parameters:,} parameters, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, compiled in {compile_seconds:.1f} s"
        + (f", going on after step {start}" if start else ""),
        flush=True,
    )
    if session.experiment.optim.warmup >= session.experiment.train.steps:
        print("  the learning rate does not reach its peak: optim.warmup is not below train.steps", flush=True)
