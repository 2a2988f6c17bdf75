"""Training from the command line: which experiment, its errors in one line, and the exit codes."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from titans_jax import config
from titans_jax.checkpoint import CheckpointError
from titans_jax.training.errors import Diverged, Stopped
from titans_jax.training.trainer import run as train

EXITS: dict[type[Exception], int] = {
    **dict.fromkeys((ValueError, OSError, MemoryError, ImportError), 2),
    CheckpointError: 3,
    **dict.fromkeys((Diverged, FloatingPointError), 4),
    Stopped: 75,
}


def command(arguments: Sequence[str], prog: str) -> int:
    """Train a config by name or path, changed by `--section.field value`; returns the exit code."""
    configs = "\n".join(f"  {name:<14} {line}" for name, line in config.available().items())
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} NAME_OR_PATH [--section.field value ...]",
        description="Train a model. An interrupted run goes on where it stopped when the same command is given again.",
        epilog=f"configs:\n{configs}\n\n`{prog} NAME --help` lists the fields of a config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not arguments or arguments[0] in ("-h", "--help"),
    )
    parser.add_argument("config", metavar="NAME_OR_PATH", help="a config below, or a Python file with get_config()")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the run in the output folder; --no-resume removes its checkpoints and starts over",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options, changes = parser.parse_known_args(arguments)

    def run() -> None:
        experiment = config.override(config.load(options.config), changes, prog=f"{prog} {options.config}")
        train(experiment, resume=options.resume)

    return guard(run, prog=prog, debug=options.debug)


def guard(run: Callable[[], object], *, prog: str, debug: bool = False) -> int:
    """Call `run`; an error that a user can do something about becomes one line on stderr and its exit code."""
    try:
        run()
    except tuple(EXITS) as error:
        if debug:
            traceback.print_exc()
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return next(code for kind, code in EXITS.items() if isinstance(error, kind))
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return 130
    return 0
