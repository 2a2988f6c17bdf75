"""A training run: from an Experiment to a trained model on disk, through signals, kills and resumes."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax import config as configs
from titans_jax import data, files, metrics, sharding
from titans_jax.checkpoint import Checkpoints
from titans_jax.config import Experiment
from titans_jax.evaluation import evaluate
from titans_jax.evaluation.ablation import frozen
from titans_jax.json_values import changes
from titans_jax.nn import LM
from titans_jax.training import loop, processes
from titans_jax.training.errors import NotFinite, Stopped, memory_advice, stop_requested, stopping
from titans_jax.training.model_io import describe, identity
from titans_jax.training.placement import Placement
from titans_jax.training.recalled import baseline_of, figures, tells_facts
from titans_jax.training.report import finish
from titans_jax.training.session import Recorder, Session, diverged, note, profiled
from titans_jax.training.step import TrainState, define, init_state, make_step, optimizer_of

Open = Callable[[Experiment], tuple[Session, TrainState, int]]


def run(experiment: Experiment, *, resume: bool = True, change: Sequence[str] = ()) -> dict[str, Any]:
    """Train, or go on with, an experiment; everything is written below `experiment.output`.

    resume: go on from the newest checkpoint there, if there is one; False removes what an earlier run left.
    change: fields, such as "optim.peak_rate", that may differ from those of the run to go on with.
    Returns what result.json holds. A signal ends the run after the step it comes in.

    Raises ValueError for a configuration that cannot work, or that is not the one of the run to go on with; Diverged;
    Stopped; CheckpointError when there are checkpoints and none can be used.
    """
    with contextlib.ExitStack() as locks:
        return _run(_with_steps(experiment), functools.partial(_open, resume=resume, change=change, locks=locks))


def _run(experiment: Experiment, open_: Open) -> dict[str, Any]:
    session, model, measured = _trained(experiment, open_)
    placement, found = session.placement, None
    if tells_facts(experiment.data):
        remembers = experiment.model.pattern != ("transformer",)
        baseline = baseline_of(experiment)
        others = {} if baseline is None else {baseline.name: _trained(baseline, open_)[1]}
        with placement.active(), stopping():
            models = {"memory": model, "memory frozen": frozen(model)} if remembers else {"transformer": model}
            found = figures(experiment, models | others, placement.batch)
    with placement.active(), stopping():
        return finish(experiment, model, session.tokenizer, session.checkpoints, measured, found)


def _trained(experiment: Experiment, open_: Open) -> tuple[Session, LM, dict[str, Any]]:
    """The session of a run at its end, its model on the run's devices, and what its last evaluation measured."""
    with memory_advice():
        with stopping(), metrics.waiting(f"opening {experiment.output}"):
            session, state, start = open_(experiment)
        try:
            with session.placement.active():
                if start < experiment.train.steps:
                    state, evaluation = _train(session, state, start)
                else:  # it was killed after its last step, or had ended: only what is left at the end is made again
                    with stopping():
                        evaluation = _evaluate(session, state)
        finally:
            session.log.close()
        return session, nnx.merge(session.graphdef, state.params), evaluation


def _with_steps(experiment: Experiment) -> Experiment:
    """The experiment with its epochs as steps."""
    epochs = experiment.train.epochs
    if epochs is None:
        return experiment
    if not epochs > 0:
        raise ValueError(f"train.epochs is {epochs}; it must be above 0, or None to take train.steps")
    steps = math.ceil(epochs * data.steps_an_epoch(experiment.data))
    return replace(experiment, train=replace(experiment.train, steps=steps, epochs=None))


def _open(
    experiment: Experiment, *, resume: bool, change: Sequence[str], locks: contextlib.ExitStack
) -> tuple[Session, TrainState, int]:
    """Everything before the first step; what is wrong with the configuration shows here, before compiling."""
    files.check_folder(experiment.output)
    placement = Placement.of(experiment.mesh)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    configs.validate(experiment, vocabulary=tokenizer.vocab_size, shards=placement.shards)
    folder = experiment.output / "checkpoints"
    locks.enter_context(processes.locked(experiment.output))
    if not resume:
        processes.remove(folder)
    checkpoints, start, meta = Checkpoints(folder, keep=experiment.train.keep), 0, describe(experiment)
    if checkpoints.steps():
        start = checkpoints.find("last")
        saved, now = (identity(each, folder) for each in (meta | checkpoints.meta(start), meta))
        require_same_run(experiment.output, saved, now, option="--output-dir", may_change=(*_MAY_CHANGE, *change))
    if start > experiment.train.steps:
        raise ValueError(f"{experiment.output} holds a run of {start} steps; train.steps is {experiment.train.steps}")
    batches = _batches(experiment, placement, start)
    model = define(experiment.model)
    optimizer = optimizer_of(experiment.model, experiment.optim, experiment.train.steps)
    with placement.active():
        state = init_state(model, optimizer, placement, experiment.train.seed)
        if start:
            state = TrainState(**checkpoints.restore(state._asdict(), which=start)[0])
    log = metrics.Log(experiment.output, step=start or None)
    session = Session(experiment, placement, tokenizer, model.graphdef, optimizer, batches, meta, checkpoints, log)
    return session, state, start


def _batches(experiment: Experiment, placement: Placement, start: int) -> grain.DatasetIterator:
    rows = placement.rows(experiment.data.batch)
    return data.train_batches(experiment.data, seed=experiment.train.seed, start=start, rows=rows)


# What decides no number of the run, and its length, which moves the schedule from here on as asked.
_OF_TRAIN = "steps log_every eval_ save_every keep not_finite patience prompt sample profile baseline".split()
_OF_DEVICES = ("mesh", "optim.accumulation", "data.workers", "data.cache_dir")
_MAY_CHANGE = ("name", "output_dir", *_OF_DEVICES, *(f"train.{name}" for name in _OF_TRAIN))


def require_same_run(
    folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any], *, option: str, may_change: tuple[str, ...] = ()
) -> None:
    """Raise ValueError where a configuration differs from the saved one, except in fields that begin as `may_change`.

    option: the command's option that names another folder.
    """
    for path, old, new in changes(saved, now):
        if not path.startswith(may_change):
            named = "." in path and not path.startswith("data.")  # a field of an Experiment; texts stay the same
            how = f", --change {path} to go on" if named else ""
            raise ValueError(
                f"{folder} holds a run with {path} = {old}, not {new}; "
                f"give another {option}{how}, or --no-resume to start over"
            )


def _train(session: Session, state: TrainState, start: int) -> tuple[TrainState, dict[str, Any]]:
    """Steps start + 1 to the last; the state and the last evaluation."""
    train, config, placement = session.experiment.train, session.experiment.data, session.placement
    started = time.perf_counter()
    with stopping(), metrics.Progress(1, f"compiling {session.experiment.name}") as bar:
        made = make_step(session.graphdef, session.optimizer, train, session.experiment.optim.accumulation)
        step = made.lower(state, placement.abstract_batch(config)).compile()
        bar.advance()
    compile_seconds = time.perf_counter() - started
    _announce(session, state, start, compile_seconds)
    byte_lengths = jax.device_put(session.tokenizer.byte_lengths, placement.replicated)
    evaluation: dict[str, Any] = {}
    kinds = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def advance(state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, dict[str, Any]]:
        arrays = placement.device_batch(batch, config)
        state, step_metrics = step(state, arrays)
        return state, step_metrics | {"counted": _counted(arrays["targets"], arrays["mask"], byte_lengths)}

    def evaluating(n: int) -> bool:
        return n % train.eval_every == 0 or n == train.steps

    def pause(n: int, state: TrainState, stopping: bool) -> None:
        with recorder.pause():
            if evaluating(n):
                with recorder.timed("evaluate"):
                    evaluation.update(_evaluate(session, state))
                session.log.write(n, "held_out", {name: evaluation[name] for name in _CURVES})
                if not math.isfinite(evaluation["loss"]):
                    raise NotFinite(n, "held-out loss not finite")
            with recorder.timed("save"):
                _save(session, state, n, evaluation if evaluating(n) else None)
        if stopping and n < train.steps:
            raise Stopped(f"stopped after step {n}, which is saved in {session.checkpoints.directory}")

    with stop_requested() as stop, metrics.Progress(train.steps, session.experiment.name, initial=start) as bar:
        recorder, batches = Recorder(session, bar, compile_seconds), session.batches
        event = processes.Agreed(stop, placement.mesh) if placement.mesh and jax.process_count() > 1 else stop
        rollbacks: list[int] = []
        while True:
            try:
                if start == train.steps:  # the last step was passed over
                    pause(start, state, False)
                state = loop.train(
                    advance,
                    state,
                    profiled(recorder.waiting_for(itertools.islice(batches, train.steps - start)), start, session),
                    start=start,
                    record=recorder.record,
                    due=lambda n: evaluating(n) or n % train.save_every == 0,
                    pause=pause,
                    stop=event,
                )
                session.log.write(train.steps, "time", recorder.times())
                return state, evaluation
            except NotFinite as error:
                wrong = error.with_traceback(None)  # it would keep the state in memory
            with recorder.pause():
                state, start = _rolled_back(session, kinds, wrong, rollbacks), wrong.step
                batches = _batches(session.experiment, placement, start)


def _rolled_back(session: Session, kinds: TrainState, error: NotFinite, before: list[int]) -> TrainState:
    """The state of the last checkpoint, as that after the step of `error`. Raises Diverged where there is no way back.

    before: the checkpoints of earlier calls, to which this one's is added.
    """
    train, steps = session.experiment.train, session.checkpoints.steps()
    if train.not_finite != "rollback" or not steps or before.count(steps[-1]) + 1 >= train.patience:
        raise diverged(error, session) from error
    before.append(steps[-1])
    arrays, _, step = session.checkpoints.restore(kinds._asdict())
    note(f"step {error.step}: {error}; back to step {step}, and steps {step + 1} to {error.step} are passed over")
    return TrainState(**arrays)


_CURVES = ("loss", "perplexity", "bits_per_byte", "accuracy")


@jax.jit
def _counted(targets: jax.Array, mask: jax.Array, byte_lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Targets that count, over all devices, and the bytes of text they stand for."""
    counts = mask != 0
    lengths = byte_lengths.at[targets].get(out_sharding=sharding.out(targets.shape, "batch", None))
    return jnp.sum(counts), jnp.sum(jnp.where(counts, lengths, 0))


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
            meta=session.meta | {"evaluation": evaluation},
            score=evaluation["bits_per_byte"] if evaluation else None,
        )
    except FloatingPointError as error:
        raise NotFinite(n, str(error)) from error


def _announce(session: Session, state: TrainState, start: int, compile_seconds: float) -> None:
    if not metrics.is_main():
        return
    parameters = metrics.count(state.params)
    print(
        f"{session.experiment.name}: {session.experiment.model.block}, {parameters:,} parameters, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, compiled in {compile_seconds:.1f} s"
        + (f", going on after step {start}" if start else ""),
        flush=True,
    )
    if session.experiment.optim.warmup >= session.experiment.train.steps:
        print("  the learning rate does not reach its peak: optim.warmup is not below train.steps", flush=True)
