"""What the commands' options share: types of arguments, and where a checkpoint is and its results go."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """--checkpoint, --which and --output-dir."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a run's output folder")
    parser.add_argument("--which", type=which, default="best", help="best, last or a step (default best)")
    parser.add_argument("--output-dir", type=Path, help="where results go (default: a folder in the checkpoint's run)")


def which(text: str) -> str | int:
    """The best checkpoint, the last, or that of a step."""
    if text in ("best", "last"):
        return text
    return positive(text)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def names(text: str) -> list[str]:
    """Names with commas between, each once."""
    return list(dict.fromkeys(text.split(",")))


def rates(text: str) -> list[float]:
    """Numbers with commas between, in order."""
    try:
        return sorted({float(rate) for rate in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between, such as 1e-3,3e-3") from None


def output(options: argparse.Namespace, command: str) -> Path:
    """The folder for a command's results, made."""
    run = options.checkpoint.parent if options.checkpoint.name == "checkpoints" else options.checkpoint
    folder: Path = options.output_dir or run / command
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def first_line(run: Callable[..., Any]) -> str:
    """What a command is for, from its docstring."""
    return (run.__doc__ or "").partition("\n")[0]
