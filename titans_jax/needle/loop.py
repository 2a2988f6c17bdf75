"""Training Titan-Min: epochs over samples of mixed lengths, with checkpoints from which a run goes on as it was."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from titans_jax import config as configs
from titans_jax import data, metrics, optim
from titans_jax.checkpoint import CheckpointError, Checkpoints, Which
from titans_jax.needle.config import NeedleConfig
from titans_jax.needle.evaluate import predict, score
from titans_jax.needle.model import TitanMin
from titans_jax.needle.samples import epoch
from titans_jax.training import Diverged, Stopped, memory_advice
from titans_jax.training.guards import stop_requested

Step = Callable[[Any, Any, ArrayLike, ArrayLike], tuple[Any, Any, Array, Array]]


def train(config: NeedleConfig, folder: Path, *, resume: bool = True, name: str = "needle") -> TitanMin:
    """Train, or go on with, a model; `folder` gets checkpoints/, config.json and metrics.json.

    metrics.json: a record of split "train" for every step, one of split "held_out" for every epoch.
    resume: go on from the newest checkpoint there, if there is one. name: stands at the progress bar.
    Returns the model of the epoch that was best on the samples to validate.

    Raises ValueError for a configuration that cannot work or is not that of the run to go on with; Diverged; Stopped
    after SIGTERM or SIGINT, once everything is saved.
    """
    config.check()
    samples, validation, _ = data.needle_splits(config.data_seed, config.samples, config.lengths)
    each = len(epoch(samples, config.batch, seed=config.seed, number=0))
    total = each * config.epochs
    if not resume:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    with stop_requested() as stop, memory_advice():
        graphdef, arrays, optimizer = _begin(config, total)
        record: list[dict[str, Any]] = []
        start = 0
        if checkpoints.steps():
            arrays, meta, start = checkpoints.restore(arrays)
            _same_run(config, meta["config"], folder)
            record = meta["record"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        step = make_step(graphdef, optimizer)
        params, state = arrays["params"], arrays["optimizer"]
        with metrics.progress(total, name, initial=start) as bar:
            for n in range(start, total):
                if n == start or n % each == 0:
                    batches = epoch(samples, config.batch, seed=config.seed, number=n // each)
                batch = batches[n % each]
                params, state, *seen = step(params, state, batch.tokens, batch.position)
                loss, accuracy = (float(x) for x in seen)
                if not math.isfinite(loss):
                    raise Diverged(f"diverged at step {n + 1}: the loss is {loss}; a lower --learning-rate may help")
                length = batch.tokens.shape[1]
                record.append({"step": n + 1, "split": "train", "length": length, "loss": loss, "accuracy": accuracy})
                bar.advance(1, tokens=batch.tokens.size, loss=loss, accuracy=accuracy)
                ended = (n + 1) % each == 0
                if not (ended or stop.is_set()):
                    continue
                if ended:
                    found = score(predict(nnx.merge(graphdef, params), validation, config.batch))
                    record.append({"step": n + 1, "split": "held_out"} | found)
                checkpoints.save(
                    n + 1,
                    {"params": params, "optimizer": state},
                    meta={"config": dataclasses.asdict(config), "record": record},
                    score=found["loss"] if ended else None,
                )
                (folder / "metrics.json").write_text(json.dumps(record) + "\n")
                if stop.is_set() and n + 1 < total:
                    raise Stopped(f"stopped after step {n + 1} of {total}, which is saved in {folder}/checkpoints")
    return load(folder)[1]


def load(folder: Path, which: Which = "best") -> tuple[NeedleConfig, TitanMin, int]:
    """The configuration, the model and the step of a checkpoint: "best", "last" or a step.

    Raises CheckpointError when there is none that can be used.
    """
    path = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not path.is_dir():
        raise CheckpointError(f"{folder} is no folder of checkpoints")
    checkpoints = Checkpoints(path)
    step = checkpoints.find(which)
    config = configs.parse(NeedleConfig, checkpoints.meta(step)["config"], "needle")
    graphdef, arrays, _ = _begin(config, 1, abstract=True)
    params = checkpoints.restore({"params": arrays["params"]}, which=step)[0]["params"]
    return config, nnx.merge(graphdef, params), step


def make_step(graphdef: Any, optimizer: optax.GradientTransformation) -> Step:
    """step(params, optimizer, tokens, position) -> both after it, loss and accuracy; compiled once a length."""

    def loss_of(params: Any, tokens: Array, position: Array) -> tuple[Array, Array]:
        logits, _ = nnx.merge(graphdef, params)(tokens)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, position).mean()
        return loss, (logits.argmax(-1) == position).mean()

    def step(params: Any, state: Any, tokens: Array, position: Array) -> tuple[Any, Any, Array, Array]:
        (loss, accuracy), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, tokens, position)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, accuracy

    return jax.jit(step, donate_argnums=(0, 1))


def _begin(config: NeedleConfig, steps: int, abstract: bool = False) -> tuple[Any, dict[str, Any], Any]:
    """The model's graph, its first arrays and its optimizer's (their shapes alone if abstract), the optimizer."""
    static = []

    def build(key: Array) -> Any:
        graphdef, params = nnx.split(TitanMin(config, rngs=nnx.Rngs(key)))
        static.append(graphdef)
        return nnx.to_pure_dict(params)

    make = jax.eval_shape if abstract else lambda f, x: jax.jit(f)(x)
    params = make(build, jax.random.key(config.seed))
    warmup = min(50, steps // 10)
    chosen = optim.OptimConfig(name="adamw", peak_rate=config.learning_rate, warmup=warmup, weight_decay=0.01)
    optimizer = optim.build(chosen, steps)
    return static[0], {"params": params, "optimizer": make(optimizer.init, params)}, optimizer


def _same_run(config: NeedleConfig, saved: dict[str, Any], folder: Path) -> None:
    for path, old, new in configs.changes(saved, json.loads(json.dumps(dataclasses.asdict(config)))):
        raise ValueError(f"{folder} holds a run with {path} = {old}, not {new}; give another --out, or --no-resume")
