"""The command line `titans-jax COMMAND`: each command is a module with `configure`, its options, and `run`."""

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from titans_jax import __version__
from titans_jax.nearest import did_you_mean, require_known
from titans_jax.waiting import ends_at_once, waiting

COMMANDS = {
    "train": "train a config; `titans-jax train --help` lists them",
    "audit": "check whether a checkpoint's memory remembers",
    "bench": "compare rules, optimizers or models by short trainings, or measure speed and memory",
    "compare": "train models on the same batches and compare them",
    "data": "list and show corpora, or train a tokenizer",
    "doctor": "check this installation, and show what a report of a fault needs",
    "eval": "score a checkpoint on held-out text",
    "export": "write a checkpoint as safetensors with a model card, or as StableHLO",
    "generate": "write text with a checkpoint",
    "haystack": "find a hidden sentence in texts of many lengths",
    "launch": "train in several processes on this machine, as several hosts would",
    "lm-eval": "run tasks of the lm-evaluation-harness",
    "needle": "train and test Titan-Min: find a needle among random tokens",
    "plan": "whether a training fits a TPU slice, without a TPU",
    "plot": "draw surprise, memories and gates",
    "replay": "take a step of a training again, and find what is not finite in it",
    "rules": "list the memory rules and their four choices",
    "stream": "read a file of any length with a fixed state",
}
"""What each command does. Its module is imported only when it runs, so that help and typing errors are fast."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors of one line, with the nearest name where one is misspelt."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            require_known("/".join(action.option_strings) or str(action.metavar), value, [*action.choices])

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None, train_py: str = "titans-jax train") -> int:
    """Run a command and return its exit code; see the README beside this file. train_py: the name of `train`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    message = f"{train_py.split()[0]}: interrupted"
    try:
        with ends_at_once(message, 130):
            return _run(arguments, train_py)
    except KeyboardInterrupt:
        print(f"\n{message}", file=sys.stderr)
        return 130


def _run(arguments: list[str], train_py: str) -> int:
    name = next(iter(arguments), "")
    if name not in COMMANDS:
        return _without_command(arguments)
    with waiting("importing"):
        from titans_jax import files, training

        module = module_of(name) if name != "train" else None
    if module is None:  # its options are the fields of an Experiment; their defaults depend on the config
        return training.command(arguments[1:], prog=train_py)
    parser = Parser(prog=f"titans-jax {name}", description=module.run.__doc__)
    module.configure(parser)
    training.add_common(parser)
    debug, cache = "--debug" in arguments, "--no-cache" not in arguments

    def run() -> None:
        try:
            options, changes = parser.parse_known_args(arguments[1:])
        except ValueError as error:  # what is missing may be misspelt
            flags = [*flags_of(parser)]
            wrong = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in flags]
            near = did_you_mean(wrong[0], flags) if wrong and "required" in str(error) else ""
            raise ValueError(f"no option {wrong[0]}{near}" if near else str(error)) from None
        if changes and "changes" not in options:
            parser.error(f"unrecognized arguments: {' '.join(changes)}{did_you_mean(changes[0], flags_of(parser))}")
        if getattr(options, "output_dir", None) is not None:
            files.check_folder(options.output_dir)
        for file in (getattr(options, name, None) for name in ("output", "json", "save_csv")):
            if file is not None:
                files.check_file(file)
        options.changes, options.flags = changes, [*flags_of(parser)]
        module.run(options)

    return training.guard(run, prog="titans-jax", debug=debug, cache=cache)


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of its actions' parsers."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from flags_of(one)


def module_of(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"titans_jax.cli.{'evaluate' if name == 'eval' else name.replace('-', '_')}")


def _without_command(arguments: Sequence[str]) -> int:
    """--help and --version, or an error."""
    listed = "\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="titans-jax",
        usage="titans-jax COMMAND [options]",
        description="Networks whose memory learns while it reads.",
        epilog=f"commands:\n{listed}\n\n`titans-jax COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"titans-jax {__version__}")
    _, rest = parser.parse_known_args(arguments)
    wrong = f"no command {rest[0]!r}{did_you_mean(rest[0], [*COMMANDS, '--version'])}" if rest else "no command"
    print(f"titans-jax: {wrong}; see titans-jax --help", file=sys.stderr)
    return 2
