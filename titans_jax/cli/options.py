"""Shared by the commands: argument types, checkpoint options and output folders."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from titans_jax import config, data, files, training
from titans_jax.evaluation.haystack import Needle
from titans_jax.nearest import did_you_mean
from titans_jax.nn import LM
from titans_jax.training import RELEASED
from titans_jax.waiting import waiting


def checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint, --which, --rule and --output-dir."""
    shown = "a run's output folder, or released (default): the small model inside the package"
    parser.add_argument("--checkpoint", type=checkpoint, default=RELEASED, metavar="DIR", help=shown)
    load_options(parser)
    parser.add_argument("--output-dir", type=path, help="output folder (default: a folder in the checkpoint's run)")


def load_options(parser: argparse.ArgumentParser) -> None:
    """Add --which and --rule, for `load`."""
    parser.add_argument("--which", type=which, default="best", help="best, last or a step (default best)")
    rule_option(parser)


def rule_option(parser: argparse.ArgumentParser) -> None:
    """Add --rule."""
    own = "the checkpoint's rule, where it is a function of your own, which is then imported"
    parser.add_argument("--rule", default="", metavar="MODULE:FUNCTION", help=own)


def load(checkpoint: Path, options: argparse.Namespace) -> tuple[config.Experiment, LM, int]:
    """The experiment, the model and the step of a checkpoint, as `training.load`, with a line while it is read."""
    with waiting(f"loading {checkpoint}"):
        return training.load(checkpoint, options.which, rule=options.rule)


def corpus_option(parser: argparse.ArgumentParser) -> None:
    """Add --corpus, for `source_of`."""
    parser.add_argument("--corpus", help="as data.corpus (default: as in training)")


def source_of(experiment: config.Experiment, options: argparse.Namespace) -> data.DataConfig:
    """The checkpoint's text, or --corpus. Raises ValueError where a checkpoint alone says what to download."""
    source = experiment.data
    if options.corpus is None and data.is_hub(source.corpus):
        raise ValueError(f"the checkpoint's text, {source.corpus}, may be downloaded; give --corpus {source.corpus}")
    return replace(source, corpus=options.corpus or source.corpus)


def comparison(options: argparse.Namespace, changes: Sequence[str], prog: str) -> config.Experiment:
    """What a comparison trains: --config with `changes`, for --steps steps. Raises ValueError for --train.steps."""
    if any(change.partition("=")[0] == "--train.steps" for change in changes):
        raise ValueError("--train.steps: give --steps")
    base = config.override(config.load(options.config), changes, prog=prog, flags=options.flags)
    return replace(base, name="", output_dir="", train=replace(base.train, steps=options.steps))


def needle_options(parser: argparse.ArgumentParser) -> None:
    """Add --needle, --question, --answer and --digits; see `needle_of`."""
    key, default = "{key} stands for random digits, the same in needle, question and answer", Needle()
    parser.add_argument("--needle", help=f"the hidden text; {key} (default: {default.text})")
    parser.add_argument("--question", help=f"the end of the prompt (default: {default.question})")
    parser.add_argument("--answer", help="the right continuation, with its first space")
    parser.add_argument("--digits", type=positive, default=default.digits, help="digits of a key (default %(default)s)")


def needle_of(options: argparse.Namespace, default: Needle) -> Needle:
    """The needle of the options; the default's where they are not given."""
    chosen = {"text": options.needle, "question": options.question, "answer": options.answer}
    return replace(default, digits=options.digits, **{name: text for name, text in chosen.items() if text is not None})


def checkpoint(text: str) -> Path:
    """Argument type of --checkpoint: a folder, or `released` for the model inside the package."""
    return RELEASED if text == "released" else path(text)


def path(text: str) -> Path:
    """Argument type: a path, in which ~ is the home folder."""
    try:
        return files.expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def which(text: str) -> str | int:
    """Argument type of --which: best, last or a step."""
    if text not in ("best", "last") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not best, last or a step{did_you_mean(text, ['best', 'last'])}")
    return int(text) if text.isdigit() else text


def positive(text: str) -> int:
    """Argument type: a positive integer."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def seed(text: str) -> int:
    """Argument type: a seed."""
    try:
        return data.check_seed("seed", int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer in [0, 2**32)") from None


def positives(text: str) -> list[int]:
    """Argument type: positive integers separated by commas, sorted."""
    return sorted({positive(part) for part in text.split(",")})


def names(text: str) -> list[str]:
    """Argument type: names separated by commas, without duplicates."""
    return list(dict.fromkeys(text.split(",")))


def rates(text: str) -> list[float]:
    """Argument type: numbers separated by commas, sorted."""
    try:
        return sorted({float(rate) for rate in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers separated by commas, such as 1e-3,3e-3") from None


def run_folder(checkpoint: Path) -> Path:
    """The output folder of the run that wrote a checkpoint: --checkpoint may also be its folder `checkpoints`.

    For the model inside the package it is outputs/released.
    """
    if checkpoint == RELEASED:
        return Path("outputs", "released")
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint


def output(options: argparse.Namespace, command: str) -> Path:
    """The output folder of a command. Raises ValueError for one that cannot be written."""
    folder: Path = options.output_dir or run_folder(options.checkpoint) / command
    if options.output_dir or options.checkpoint.is_dir():  # else `load` says what is wrong
        files.check_folder(folder)
    return folder


def stopped(folder: Path) -> str:
    """The message of a command that a signal stopped and that can continue."""
    return f"stopped; {folder} keeps the finished results; run the same command again to continue"


def first_line(run: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (run.__doc__ or "").partition("\n")[0]
