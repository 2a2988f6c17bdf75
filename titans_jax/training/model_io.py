"""Trained models on disk: the checkpoints of a run, and folders of safetensors that stand alone.

    folder/model.safetensors    every parameter by name, as `titans_jax.checkpoint` names them
    folder/config.json          the experiment, the step, what it was trained on, what was measured, a sha256
    folder/tokenizer.json       where the tokenizer is not bytes

A folder whose parameters are not those of its config.json is refused.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from titans_jax import __version__, config, data, files
from titans_jax.checkpoint import CheckpointError, Checkpoints, by_name, kind, require_same
from titans_jax.config import Experiment
from titans_jax.nn import LM
from titans_jax.training.step import define

WEIGHTS = "model.safetensors"
RELEASED = Path(__file__).parents[1] / "released"
"""A trained model inside the package, for `load`; released/README.md is its card."""


def load(folder: str | Path, which: Any = "best") -> tuple[Experiment, LM, int]:
    """The experiment, the model and the step of a run's output folder, its checkpoints/ folder, or of `save_model`.

    which: "best", "last" or a step of a run. Raises CheckpointError when there is none, or none that can be used.
    """
    if (Path(folder) / WEIGHTS).is_file():
        return _load_saved(Path(folder))
    checkpoints = checkpoints_of(folder)
    step = checkpoints.find(which)
    meta = checkpoints.meta(step)
    if "experiment" not in meta:
        raise CheckpointError(f"{folder} is a run of another command, such as needle; give one of train")
    experiment = experiment_of(meta, folder)
    model = define(experiment.model)
    arrays, _, _ = checkpoints.restore({"params": jax.eval_shape(model.init, jax.random.key(0))}, which=step)
    return experiment, model.model(arrays["params"]), step


def describe(experiment: Experiment) -> dict[str, Any]:
    """What a checkpoint says about its run, as JSON: the experiment, its text and tokenizer, and this version."""
    written = {"version": __version__, "experiment": config.to_json(experiment)}
    return written | {"corpus": data.provenance(experiment.data.corpus), "content": data.content(experiment.data)}


def experiment_of(meta: Mapping[str, Any], folder: str | Path) -> Experiment:
    """The experiment of `describe`, by an older version too. Raises CheckpointError, which names the folder."""
    try:
        return config.from_json(meta["experiment"])
    except (ValueError, KeyError, TypeError) as error:
        why = f"{folder} holds no usable model: {type(error).__name__}: {error}"
        writer = meta.get("version", "of an unknown version")
        raise CheckpointError(f"{why}; it was written by titans-jax {writer}, and this is {__version__}") from None


def identity(meta: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """What makes two of `describe` the same run, as JSON. Raises CheckpointError as `experiment_of`."""
    return config.to_json(experiment_of(meta, folder)) | meta["content"]


def checkpoints_of(folder: str | Path) -> Checkpoints:
    """The checkpoints of a run's output folder, or of its checkpoints/ folder. Raises CheckpointError for no folder."""
    path = Path(folder)
    path = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = Checkpoints(path)
    if not checkpoints.steps():
        of_run = "a run's output folder that has checkpoints, or a folder of `titans-jax export`"
        right = f"{path.parent} and --which {path.name}" if path.parent.name == "checkpoints" else of_run
        raise CheckpointError(f"{path} is no folder of checkpoints; give {right}")
    return checkpoints


def named_parameters(model: LM) -> dict[str, jax.Array]:
    """Every parameter by name, such as "blocks/0/memory/qkv/kernel" [layers, in, out]."""
    return by_name(nnx.to_pure_dict(nnx.split(model)[1]), "model")


def facts(folder: str | Path, step: int) -> dict[str, Any]:
    """What was written with a model: corpus, its provenance, and evaluation at this step, or None. Raises as `load`."""
    if (Path(folder) / WEIGHTS).is_file():
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["facts"]
    meta = checkpoints_of(folder).meta(step)
    return {name: meta[name] for name in ("corpus", "evaluation")}


def save_model(
    folder: str | Path,
    experiment: Experiment,
    model: LM,
    step: int,
    facts: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a model so that `load(folder)` gives it back, and others can read it too; facts as `facts`.

    dtype: of the file: float32, from which it comes back bit for bit, or float16, rounded.
    """
    path = Path(folder)
    arrays = {name: np.ascontiguousarray(array, dtype) for name, array in named_parameters(model).items()}
    weights = safetensors.numpy.save(arrays, {"format": "jax"})
    record = {"step": step, "sha256": hashlib.sha256(weights).hexdigest(), "facts": dict(facts or {})}
    record |= {"version": __version__, "experiment": config.to_json(experiment)}
    files.write(path / WEIGHTS, weights)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    if isinstance(tokenizer, data.BPETokenizer):
        files.write(path / "tokenizer.json", tokenizer.json)
    files.write_json(path / "config.json", record)


def _load_saved(folder: Path) -> tuple[Experiment, LM, int]:
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        experiment, step, written = experiment_of(record, folder), int(record["step"]), record["sha256"]
        raw = (folder / WEIGHTS).read_bytes()
        found = {name: _widened(array) for name, array in safetensors.numpy.load(raw).items()}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        right = "only a folder that `titans-jax export` wrote can be used"
        raise CheckpointError(f"{folder} holds no usable model: {type(error).__name__}: {error}; {right}") from None
    if hashlib.sha256(raw).hexdigest() != written:
        raise CheckpointError(f"{folder}: {WEIGHTS} is not what was written: its sha256 is not the one of config.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer = str(folder / "tokenizer.json")
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, tokenizer=tokenizer))
    definition = define(experiment.model)
    abstract = jax.eval_shape(definition.init, jax.random.key(0))
    wanted = by_name(abstract, WEIGHTS)
    kinds = {name: kind(array) for name, array in found.items()}
    require_same(f"{folder} does not fit its config.json: {WEIGHTS}", wanted, kinds)
    arrays = [jnp.asarray(found[name]) for name in wanted]
    return experiment, definition.model(jax.tree.unflatten(jax.tree.structure(abstract), arrays)), step


def _widened(array: np.ndarray) -> np.ndarray:
    """A parameter that was written in float16, as float32; another array as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
