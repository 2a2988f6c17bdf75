"""Training from the command line: which experiment, its errors in one line, and the exit codes."""

import argparse
import hashlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from titans_jax import config, data
from titans_jax.checkpoint import CheckpointError
from titans_jax.nearest import did_you_mean
from titans_jax.training import processes
from titans_jax.training.errors import Diverged, Lost, Stopped
from titans_jax.training.trainer import run as train

EXITS: dict[type[Exception], int] = {
    **dict.fromkeys((ValueError, OSError, MemoryError, ImportError), 2),
    CheckpointError: 3,
    **dict.fromkeys((Diverged, FloatingPointError), 4),
    Stopped: Stopped.code,
    Lost: 76,
}


def command(arguments: Sequence[str], prog: str) -> int:
    """Train a config by name or path, changed by `--section.field value`; returns the exit code."""
    asks_help = not arguments or arguments[0] in ("-h", "--help")
    listed = config.available() if asks_help else {}  # which reads every config
    configs = "\n".join(f"  {name:<14} {line}" for name, line in listed.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} NAME_OR_PATH [--section.field value ...]",
        description="Train a model. An interrupted run goes on where it stopped when the same command is given again.",
        epilog=f"configs:\n{configs}\n\n`{prog} NAME --help` lists the fields of a config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=asks_help,
    )
    parser.add_argument("config", metavar="NAME_OR_PATH", help="a config below, or a Python file with get_config()")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the run in the output folder; --no-resume removes its checkpoints and starts over",
    )
    parser.add_argument(
        "--change",
        default="",
        metavar="FIELD,...",
        help="fields that may differ from those of the run to go on with, such as optim.peak-rate",
    )
    parser.add_argument(
        "--distributed",
        default="",
        metavar="HOST:PORT,PROCESSES,INDEX",
        help="this process of a run of several; TPU pods, SLURM and Open MPI are recognised without it",
    )
    add_common(parser)
    options, changes = parser.parse_known_args(arguments)

    def run() -> None:
        experiment = config.override(config.load(options.config), changes, prog=f"{prog} {options.config}")
        change = _fields(options.change)
        processes.start(options.distributed, prog=prog)
        with processes.reports_lost():
            train(experiment, resume=options.resume, change=change)

    return processes.leave(guard(run, prog=prog, debug=options.debug, cache=not options.no_cache))


def _fields(text: str) -> list[str]:
    """The fields that --change names. Raises ValueError for what is no field."""
    names = [name for name in text.replace("-", "_").split(",") if name]
    flags = [flag[2:].replace("-", "_") for flag in config.flags_of(config.Experiment)]
    sections = {flag.rpartition(".")[0] for flag in flags}
    known = [flag for flag in flags if flag not in sections and not flag.rpartition(".")[2].startswith("no_")]
    for name in names:
        if name not in known:
            raise ValueError(f"--change {name}: it is not a field{did_you_mean(name, known)}")
    return names


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    text = "neither save nor load compiled programs in ~/.cache/titans_jax"
    parser.add_argument("--no-cache", action="store_true", help=text)


def guard(run: Callable[[], object], *, prog: str, debug: bool = False, cache: bool = False) -> int:
    """Call `run`; an error that a user can do something about becomes one line on stderr and its exit code.

    cache: keep compiled programs on disk, for later processes.
    """
    try:
        if cache and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
            jax.config.update("jax_compilation_cache_dir", str(_programs()))
        run()
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except tuple(EXITS) as error:
        if debug:
            traceback.print_exc()
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        print(f"{prog}: {' '.join(text.split())}", file=sys.stderr)
        return next(code for kind, code in EXITS.items() if isinstance(error, kind))
    return 0


def _programs() -> Path:
    """The folder of programs that XLA compiled on processors like this one; a home may be shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return data.cache_folder(None) / f"programs-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
