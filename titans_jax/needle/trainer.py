"""A training run of Titan-Min: epochs over samples of mixed lengths, with checkpoints to resume from."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax import Array

from titans_jax import data, files, metrics, optim
from titans_jax.checkpoint import CheckpointError, Checkpoints, Which
from titans_jax.compiling import ONCE
from titans_jax.json_values import parse
from titans_jax.needle.config import NeedleConfig
from titans_jax.needle.evaluate import predict, score
from titans_jax.needle.model import TitanMin
from titans_jax.needle.samples import Batch, epoch
from titans_jax.training import Diverged, Stopped, define, loop
from titans_jax.training.errors import stop_requested
from titans_jax.training.model_io import checkpoints_of, planned
from titans_jax.training.trainer import require_same_run

Step = Callable[[dict[str, Any], Batch], tuple[dict[str, Any], dict[str, Any]]]


def train(config: NeedleConfig, folder: Path, *, resume: bool = True, name: str = "needle") -> None:
    """Train, or go on with, a model, which `load` gives; `folder` gets checkpoints/, config.json and metrics.json.

    metrics.json: a record of split "train" for every step, one of split "held_out" for every epoch.
    resume: go on from the newest checkpoint there, if there is one. name: stands at the progress bar.
    The best checkpoint is that of the epoch with the least loss on the samples to validate.

    Raises ValueError for a configuration that is not that of the run to go on with; Diverged; Stopped after SIGTERM or
    SIGINT, once everything is saved.
    """
    with files.locked(folder):
        _train(config, folder, resume, name)


def _train(config: NeedleConfig, folder: Path, resume: bool, name: str) -> None:
    samples, validation, _ = data.needle_splits(config.data_seed, config.samples, config.lengths)
    each = len(epoch(samples, config.batch, seed=config.seed, number=0))
    total = each * config.epochs
    if not resume:
        files.remove(folder / "checkpoints")
    checkpoints = Checkpoints(folder / "checkpoints")
    model = define(config, TitanMin)
    chosen = optim.OptimConfig(
        name="adamw", peak_rate=config.learning_rate, warmup=min(50, total // 10), weight_decay=0.01
    )
    optimizer = optim.build(chosen, total)
    params = jax.jit(model.init, compiler_options=ONCE)(jax.random.key(config.seed))
    arrays = {"params": params, "optimizer": jax.jit(optimizer.init)(params)}
    record: list[dict[str, Any]] = []
    start = 0
    if checkpoints.steps():
        saved, now = (
            json.loads(json.dumps(dataclasses.asdict(each))) for each in (_config_of(checkpoints, "last"), config)
        )
        require_same_run(folder, saved, now, option="--output-dir")
        arrays, meta, start = checkpoints.restore(arrays)
        record = meta["record"]
    files.write_json(folder / "config.json", dataclasses.asdict(config))
    step = make_step(model.graphdef, optimizer)
    epochs = (epoch(samples, config.batch, seed=config.seed, number=number) for number in range(config.epochs))

    with stop_requested() as stop, metrics.Progress(total, name, initial=start) as bar:

        def log(n: int, step_metrics: dict[str, Any]) -> None:
            length, values = step_metrics["length"], {name: float(step_metrics[name]) for name in ("loss", "accuracy")}
            _check(n, "loss", values["loss"])
            bar.advance(1, tokens=length * config.batch, **values)
            record.append({"step": n, "split": "train", "length": length, **values})

        def pause(n: int, arrays: dict[str, Any], stopping: bool) -> None:
            score_ = None
            if n % each == 0:
                found = score(predict(model.model(arrays["params"]), validation, config.batch))
                _check(n, "held-out loss", found["loss"])
                record.append({"step": n, "split": "held_out", **found})
                score_ = found["loss"]
            meta = {"config": dataclasses.asdict(config), "record": record}
            checkpoints.save(n, arrays, meta=meta, score=score_)
            files.write(folder / "metrics.json", json.dumps(record) + "\n")
            if stopping and n < total:
                raise Stopped(f"stopped after step {n} of {total}, which is saved in {folder}/checkpoints")

        loop.train(
            step,
            arrays,
            itertools.islice(itertools.chain.from_iterable(epochs), start, total),
            start=start,
            record=log,
            due=lambda n: n % each == 0,
            pause=pause,
            stop=stop,
        )


def _check(n: int, what: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"diverged at step {n}: the {what} is {loss}; a lower --learning-rate may help, with --no-resume"
        )


def _config_of(checkpoints: Checkpoints, which: Which) -> NeedleConfig:
    meta = checkpoints.meta(which)
    if "config" not in meta:
        raise CheckpointError(f"{checkpoints.directory} is a run of another command; give one of `titans-jax needle`")
    try:
        return parse(NeedleConfig, meta["config"], "needle")
    except ValueError as error:
        raise CheckpointError(f"{checkpoints.directory} holds no Titan-Min: {type(error).__name__}: {error}") from None


def load(folder: Path, which: Which = "best") -> tuple[NeedleConfig, TitanMin, int]:
    """The configuration, the model and the step of a checkpoint: "best", "last" or a step.

    Raises CheckpointError when there is none that can be used.
    """
    checkpoints = checkpoints_of(folder)
    step = checkpoints.find(which)
    config = _config_of(checkpoints, step)
    model = planned(folder, config, TitanMin)
    arrays, _, _ = checkpoints.restore({"params": model.shapes}, which=step)
    return config, model.model(arrays["params"]), step


def make_step(graphdef: Any, optimizer: optax.GradientTransformation) -> Step:
    """step(arrays, batch) -> arrays after it, {loss, accuracy, length}; compiled once for each length.

    arrays: the model's as "params", the optimizer's as "optimizer"; those passed in are donated.
    """

    def loss_of(params: Any, tokens: Array, position: Array) -> tuple[Array, Array]:
        logits, _ = nnx.merge(graphdef, params)(tokens)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, position).mean()
        return loss, (logits.argmax(-1) == position).mean()

    @jax.jit(donate_argnums=0)
    def step(arrays: dict[str, Any], tokens: Array, position: Array) -> tuple[dict[str, Any], tuple[Array, Array]]:
        params = arrays["params"]
        outputs, gradients = jax.value_and_grad(loss_of, has_aux=True)(params, tokens, position)
        updates, state = optimizer.update(gradients, arrays["optimizer"], params)
        return {"params": optax.apply_updates(params, updates), "optimizer": state}, outputs

    def advance(arrays: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays, (loss, accuracy) = step(arrays, batch.tokens, batch.position)
        return arrays, {"loss": loss, "accuracy": accuracy, "length": batch.tokens.shape[1]}

    return advance
