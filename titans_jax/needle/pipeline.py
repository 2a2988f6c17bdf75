"""The whole experiment: train, export, evaluate, write predictions and pictures; and the ablations.

OUT/config.json, metrics.json, checkpoints/   by `train`
OUT/export/                                   by `export`
OUT/predictions.csv                           one line per test sample
OUT/report.json, result.json                  scores, by length and by position; the same as flat keys
OUT/plots/                                    the learning curve, the answers, a memory at work
"""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from titans_jax import data, files, metrics, plots, results
from titans_jax.needle.config import NeedleConfig
from titans_jax.needle.evaluate import Predictions, predict, score
from titans_jax.needle.export import export
from titans_jax.needle.model import TitanMin
from titans_jax.needle.trainer import load, train
from titans_jax.results import Column, markdown

ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no memory": {"memory": False},
    "no memory slots": {"memory_slots": 0},
    "no persistent tokens": {"n_persistent": 0},
    "no surprise threshold": {"surprise_threshold": 0.0},
    "no convolution": {"dsconv": False},
    "no l2": {"l2": False},
    "relu": {"activation": "relu"},
}
# The head reads the last token alone: one that scores each token finds the needle without any of the parts.
SMALL: dict[str, Any] = {
    "head": "classify",
    "learning_rate": 1e-2,
    "dim": 64,
    "heads": 4,
    "memory_dim": 32,
    "segment_size": 32,
    "lengths": (32, 64),
    "samples": (8000, 500, 500),
}


def run(config: NeedleConfig, folder: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train, export, evaluate and draw in `folder`; returns the content of result.json. Raises as `train` does."""
    train(config, folder, resume=resume)
    _, model, step = load(folder)
    export(model, folder / "export")
    return evaluate(config, model, folder, step)


def evaluate(config: NeedleConfig, model: TitanMin, folder: Path, step: int) -> dict[str, Any]:
    """Score the model of a step on the test samples; write predictions.csv, report.json, result.json and pictures.

    Returns the content of result.json.
    """
    samples = data.needle_splits(config.data_seed, config.samples, config.lengths)[2]
    with metrics.Progress(len(samples.length), "evaluate") as bar:
        found = predict(model, samples, config.batch, bar)
    report = score(found)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "report.json", report)
    write_predictions(found, folder / "predictions.csv")
    flat = {name: value for name, value in report.items() if not isinstance(value, dict | list)}
    flat |= {f"accuracy_{length}": value for length, value in report["acc_by_L"].items()}
    flat |= {"step": step, "parameters": metrics.count(nnx.split(model)[1])}
    results.write_result(folder, flat)
    if plots.available():
        _draw(config, model, found, samples, folder)
    return flat


def write_predictions(found: Predictions, path: Path) -> None:
    """Write a line per sample: length, the needle's position, the model's answer, its confidence, and correctness."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["sample", "length", "position", "predicted", "confidence", "correct"])
    for i, (length, position, predicted, confidence, _) in enumerate(zip(*found, strict=True)):
        rows.writerow([i, length, position, predicted, f"{confidence:.6f}", int(predicted == position)])
    files.write(path, text.getvalue())


def ablate(config: NeedleConfig, folder: Path) -> str:
    """Train each of ABLATIONS at the size of SMALL; write the table to the folder and return it.

    A variant that is already trained is only evaluated. Raises as `train` does.
    """
    rows = {}
    for name, changes in ABLATIONS.items():
        changed = dataclasses.replace(config, **(SMALL | changes))
        path = folder / name.replace(" ", "_")
        train(changed, path, name=name)
        _, model, step = load(path)
        rows[name] = evaluate(changed, model, path, step)
    lengths = [str(length) for length in sorted(SMALL["lengths"])]
    accuracies = {name: {length: row[f"accuracy_{length}"] for length in lengths} for name, row in rows.items()}
    columns: list[Column] = [("parameters", lambda row: f"{row['parameters']:,}")]
    columns += [(f"found, {n} tokens", lambda row, n=n: f"{100 * row[f'accuracy_{n}']:.1f}%") for n in lengths]  # type: ignore[misc]
    table = markdown(columns, rows, "variant")
    files.write(folder / "ablations.md", table + "\n")
    files.write_json(folder / "ablations.json", rows)
    if plots.available():
        plots.needle_ablations(accuracies, folder / "ablations_chart.png")
    return table


def _draw(config: NeedleConfig, model: TitanMin, found: Predictions, samples: data.Needles, folder: Path) -> None:
    """Draw the answers, the memory over the first of the longest samples, and the learning curve if there is one."""
    where = folder / "plots"
    plots.needle_answers(found.length, found.position, found.predicted, where / "answers.png")
    if (folder / "metrics.json").is_file():
        plots.loss_curve(json.loads((folder / "metrics.json").read_text(encoding="utf-8")), where / "loss_curve.png")
    longest = int(np.argmax(samples.length))
    tokens = samples.tokens[longest : longest + 1, : samples.length[longest]]
    look = jax.jit(lambda model, tokens: model(tokens)[1])(model, tokens)
    if look is not None:
        surprise, rate = (np.asarray(x)[:, 0].mean(1) for x in (look.surprise, look.rate))
        position = int(samples.position[longest])
        plots.needle_memory(surprise, rate, position, config.segment_size, where / "memory.png")
