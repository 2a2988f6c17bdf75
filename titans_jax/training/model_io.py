"""Trained models on disk: the checkpoints of a run, and folders of safetensors that stand alone.

    folder/model.safetensors    every parameter by name, as `titans_jax.checkpoint` names them
    folder/config.json          the experiment, the step, what it was trained on, what was measured; sha256 of the files
    folder/tokenizer.json       where the tokenizer is not bytes

config.json is sealed, and a folder whose files are not those of its config.json is refused. Loading reads: it imports
nothing that a checkpoint names, writes nowhere, and refuses a model that this machine has no room for.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
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
from titans_jax.sealed import digest, read_sealed, regular, write_sealed
from titans_jax.training.step import Definition, define

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
RELEASED = Path(__file__).parents[1] / "released"
"""A trained model inside the package, for `load`; released/README.md is its card."""


def load(folder: str | Path, which: Any = "best", *, rule: str = "") -> tuple[Experiment, LM, int]:
    """The experiment, the model and the step of a run's output folder, its checkpoints/ folder, or of `save_model`.

    The experiment has neither cache folder nor workers: those were for the machine of the run.

    which: "best", "last" or a step of a run. rule: the checkpoint's rule where that is a function of your own,
    MODULE:FUNCTION, which is then imported. Raises CheckpointError when there is none, or none that can be used.
    """
    if (Path(folder) / WEIGHTS).is_file():
        return _load_saved(Path(folder), rule)
    checkpoints = checkpoints_of(folder)
    step = checkpoints.find(which)
    meta = checkpoints.meta(step)
    if "experiment" not in meta:
        raise CheckpointError(f"{folder} is a run of another command, such as needle; give one of train")
    experiment = confined(experiment_of(meta, folder), rule, folder)
    model = planned(folder, experiment.model)
    arrays, _, _ = checkpoints.restore({"params": model.shapes}, which=step)
    return experiment, model.model(arrays["params"]), step


def confined(experiment: Experiment, rule: str, folder: str | Path) -> Experiment:
    """The experiment of a checkpoint, without its cache folder and workers.

    rule: the MODULE:FUNCTION that may be imported. Raises CheckpointError where the experiment has another.
    """
    named = experiment.model.memory.rule
    if ":" in named and named != rule:
        raise CheckpointError(f"{folder} has code as its rule, which is not imported; to trust it, give --rule {named}")
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, cache_dir=None, workers=0))


def planned(folder: str | Path, config: Any, kind: Callable[..., nnx.Module] | None = None) -> Definition:
    """The definition of a checkpoint's model, as `define`; nothing is computed.

    Raises CheckpointError if there is no such model, or if its parameters and one state do not fit into memory.
    """
    state: Any = ()
    try:
        definition = define(config, kind)
        if kind is None:
            state = jax.eval_shape(lambda params: definition.model(params).init_state(1), definition.shapes)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{folder} holds no usable model: {type(error).__name__}: {error}") from None
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((definition.shapes, state)))
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > room:
        wanted, there = (f"{number / 2**30:,.0f} GiB" for number in (size, room))
        raise CheckpointError(f"{folder}: parameters and state of its model take {wanted}; this machine has {there}")
    return definition


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
    return config.to_json(experiment_of(meta, folder)) | _written(meta, folder, "content")["content"]


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
    names = "corpus", "evaluation"
    if (Path(folder) / WEIGHTS).is_file():
        return _written(_record(Path(folder))["facts"], folder, *names)
    return _written(checkpoints_of(folder).meta(step), folder, *names)


def _written(meta: Mapping[str, Any], folder: str | Path, *names: str) -> dict[str, Any]:
    """These entries, each an object or None."""
    for name in names:
        if not isinstance(meta.get(name, name), dict | None):
            raise CheckpointError(f"{folder} has no {name} of its model; it was not written by a training")
    return {name: meta[name] for name in names}


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
    files.write(path / WEIGHTS, safetensors.numpy.save(arrays, {"format": "jax"}))
    written, tokenizer = [WEIGHTS], data.load_tokenizer(experiment.data.tokenizer)
    if isinstance(tokenizer, data.BPETokenizer):
        files.write(path / TOKENIZER, tokenizer.json)
        written.append(TOKENIZER)
    record = {"step": step, "sha256": {name: digest(path / name) for name in written}, "facts": dict(facts or {})}
    write_sealed(path / CONFIG, record | {"version": __version__, "experiment": config.to_json(experiment)})


def _record(folder: Path) -> dict[str, Any]:
    """What config.json holds."""
    try:
        record = read_sealed(folder / CONFIG)
        match record:
            case {"step": int(), "sha256": dict(), "facts": dict(), "experiment": _}:
                return record
        raise ValueError(f"{CONFIG} is not that of a model")
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: Exception) -> CheckpointError:
    right = "only a folder that `titans-jax export` wrote can be used"
    return CheckpointError(f"{folder} holds no usable model: {type(error).__name__}: {error}; {right}")


def _load_saved(folder: Path, rule: str) -> tuple[Experiment, LM, int]:
    record = _record(folder)
    experiment = confined(experiment_of(record, folder), rule, folder)
    definition = planned(folder, experiment.model)
    wanted = by_name(definition.shapes, WEIGHTS)
    most = (1 << 20) + sum(array.size * array.dtype.itemsize for array in wanted.values())
    try:
        if (size := regular(folder / WEIGHTS)) > most:
            raise ValueError(f"{WEIGHTS} has {size:,} bytes; the model of its config.json has at most {most:,}")
        for name in {WEIGHTS, TOKENIZER} & {*record["sha256"], *os.listdir(folder)}:
            if record["sha256"].get(name) != digest(folder / name):
                raise ValueError(f"{name} is not what was written: its sha256 is not the one of config.json")
        raw = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
        found = {name: _widened(array) for name, array in raw.items()}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise _unusable(folder, error) from None
    if TOKENIZER in record["sha256"]:
        source = dataclasses.replace(experiment.data, tokenizer=str(folder / TOKENIZER))
        experiment = dataclasses.replace(experiment, data=source)
    kinds = {name: kind(array) for name, array in found.items()}
    require_same(f"{folder} does not fit its config.json: {WEIGHTS}", wanted, kinds)
    arrays = [jnp.asarray(found[name]) for name in wanted]
    params = jax.tree.unflatten(jax.tree.structure(definition.shapes), arrays)
    return experiment, definition.model(params), record["step"]


def _widened(array: np.ndarray) -> np.ndarray:
    """A parameter that was written in float16, as float32; another array as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
