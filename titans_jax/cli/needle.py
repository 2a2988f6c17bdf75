"""`titans-jax needle`: training, evaluation and predictions of Titan-Min."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from titans_jax import config, data, needle, plots, results
from titans_jax.cli.options import first_line, path, run_folder, seed, which
from titans_jax.needle import standalone


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each action."""
    kinds = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    fields = "  ".join(_option(*field) for field in dataclasses.asdict(needle.NeedleConfig()).items())
    for name, work in (("run", run_all), ("train", train), ("eval", evaluate), ("infer", infer)):
        kind = kinds.add_parser(name, help=first_line(work), description=work.__doc__, epilog=EPILOGS.get(name, fields))
        kind.set_defaults(work=work)
        if name in ("run", "train"):
            kind.add_argument("--output-dir", type=path, default=Path("outputs/needle"), metavar="DIR", help=OUT)
            kind.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=RESUME)
            kind.set_defaults(changes=[])
        else:
            kind.add_argument("--checkpoint", type=path, required=name == "eval", metavar="DIR", help="a run's folder")
            kind.add_argument("--which", type=which, default="best", help="best, last or a step (default best)")
        if name == "run":
            kind.add_argument("--ablations", action="store_true", help="also train small models, each without a part")
        if name == "eval":
            kind.add_argument("--output-dir", type=path, metavar="DIR", help="output folder (default CHECKPOINT/eval)")
        if name == "infer":
            kind.add_argument("--script", type=path, metavar="FILE", help="an exported program instead of a run")
            kind.add_argument("--seq", action="append", metavar="TOKENS", help='such as "5 17 127 8"; repeatable')
            kind.add_argument("--seed", type=seed, default=0, help="of random sequences, without --seq (default 0)")
            kind.add_argument("--save-csv", type=path, metavar="FILE", help="also write the predictions to FILE")


OUT = "output folder (default %(default)s)"
RESUME = "continue the run in the folder; --no-resume removes its checkpoints and starts over"
EPILOGS = {
    "eval": "Writes result.json, report.json, predictions.csv and plots/.",
    "infer": "Without --seq, it uses random sequences and shows the right answers.",
}


def _option(name: str, default: Any) -> str:
    """The flag of a field with its default; --no-NAME for a field that is true."""
    name = name.replace("_", "-")
    if default is True:
        return f"--no-{name}"
    return f"--{name} {' '.join(map(str, default)) if isinstance(default, tuple) else default}"


def run(options: argparse.Namespace) -> None:
    """Train, export, evaluate and run Titan-Min, which finds a needle among random tokens."""
    options.work(options)


def run_all(options: argparse.Namespace) -> None:
    """Train, export, evaluate, and write predictions and pictures. The model's fields, listed below, are options."""
    chosen = _config(options, "run")
    result = needle.run(chosen, options.output_dir, resume=options.resume)
    print(results.lines(result))
    files = f"result.json, report.json, predictions.csv, metrics.json, export/{_pictures()}"
    print(f"written: {options.output_dir}/: {files}")
    if options.ablations:
        print(needle.ablate(chosen, options.output_dir / "ablations"))


def train(options: argparse.Namespace) -> None:
    """Train only. The model's fields, listed below, are options."""
    needle.train(_config(options, "train"), options.output_dir, resume=options.resume)
    print(f"written: {options.output_dir}/: checkpoints/, config.json, metrics.json")


def evaluate(options: argparse.Namespace) -> None:
    """Score a checkpoint on the test samples and write its predictions."""
    chosen, model, step = needle.load(options.checkpoint, options.which)
    folder = options.output_dir or run_folder(options.checkpoint) / "eval"
    print(results.lines(needle.evaluate(chosen, model, folder, step)))
    print(f"written: {folder}/: result.json, report.json, predictions.csv{_pictures()}")


def _pictures() -> str:
    return ", plots/" if plots.available() else ""


def infer(options: argparse.Namespace) -> None:
    """Predict the needle's position in given or random sequences."""
    if (options.checkpoint is None) == (options.script is None):
        raise ValueError("give either --checkpoint, a run's folder, or --script, an exported program; not both")
    samples = _samples(options.seq, options.seed)
    if options.script:
        logits = standalone.logits(options.script, samples.tokens)
        predicted, confidence = logits.argmax(1), np.asarray(jax.nn.softmax(logits)).max(1)
        unknown = np.full(len(predicted), np.nan, np.float32)
        found = needle.Predictions(samples.length, samples.position, predicted, confidence, unknown)
    else:
        found = needle.predict(needle.load(options.checkpoint, options.which)[1], samples, batch=1)
    for length, position, predicted, confidence, _ in zip(*found, strict=True):
        truth = "" if options.seq else f", and it is at {position}"
        print(f"{length} tokens: at {predicted} (probability {confidence:.4f}){truth}")
    if options.save_csv:
        needle.write_predictions(found, options.save_csv)


def _samples(texts: list[str] | None, seed: int) -> data.Needles:
    """The sequences of --seq, with the position of their first needle, -1 without one; or random ones."""
    if texts is None:
        return data.needles(seed, 8)
    try:
        rows = [np.array(text.replace(",", " ").split(), np.int32) for text in texts]
    except ValueError:
        raise ValueError("--seq: tokens are integers separated by spaces or commas") from None
    for row in rows:
        if not len(row) or not 0 < row.min() <= row.max() <= 127:
            raise ValueError("--seq: give at least one token, each from 1 to 127 (0 is padding)")
    length = np.array([len(row) for row in rows], np.int32)
    tokens = np.stack([np.pad(row, (0, max(length) - len(row))) for row in rows])
    position = np.array([np.append(np.flatnonzero(row == 127), -1)[0] for row in rows], np.int32)
    return data.Needles(tokens, length, position)


def _config(options: argparse.Namespace, what: str) -> needle.NeedleConfig:
    prog = f"titans-jax needle {what}"
    return config.override(needle.NeedleConfig(), options.changes, prog, options.flags)
