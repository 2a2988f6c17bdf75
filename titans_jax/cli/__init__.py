"""The command line `titans-jax COMMAND`: each command is a module with `configure`, its options, and `run`."""

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from titans_jax import training
from titans_jax.cli import (
    audit,
    bench,
    compare,
    data,
    evaluate,
    export,
    generate,
    haystack,
    lm_eval,
    needle,
    plot,
    rules,
    stream,
)
from titans_jax.cli.options import first_line

COMMANDS: dict[str, ModuleType] = {
    "audit": audit,
    "bench": bench,
    "compare": compare,
    "data": data,
    "eval": evaluate,
    "export": export,
    "generate": generate,
    "haystack": haystack,
    "lm-eval": lm_eval,
    "needle": needle,
    "plot": plot,
    "rules": rules,
    "stream": stream,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 bad input, 3 no checkpoint, 4 diverged, 75 stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:  # its options are the fields of an Experiment; their defaults depend on the config
        return training.command(arguments[1:], prog="titans-jax train")
    parser = argparse.ArgumentParser(prog="titans-jax", description="Networks whose memory learns while it reads.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a config; `titans-jax train --help` lists them")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=first_line(module.run), description=module.run.__doc__)
        module.configure(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    options, changes = parser.parse_known_args(arguments)
    if changes and "changes" not in options:
        parser.error(f"unrecognized arguments: {' '.join(changes)}")
    options.changes = changes
    return training.guard(lambda: options.run(options), prog="titans-jax", debug=options.debug)
