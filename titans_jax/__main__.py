"""`python -m titans_jax COMMAND`, and the script titans-jax: see `titans_jax.cli`."""

import io
import signal
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None, train_py: str = "titans-jax train") -> int:
    """Run a command, by default that of sys.argv, and return its exit code; as the last thing of a process."""
    from titans_jax import cli  # not at the top: data workers import this file and must not import jax
    from titans_jax.waiting import end_now

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter still shows the rest
    sys.unraisablehook = _unraisable
    code = cli.main(arguments, train_py)
    if code in (75, 130):  # jax may still compute: Python would wait for it, and then crash
        sys.stdout.flush()
        sys.stderr.flush()
        end_now(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done: Python would show a traceback while it ends
    return code


def _unraisable(unraisable: Any) -> None:
    """Python's report of an exception that it drops, except for an interrupt: `waiting.ends_at_once` ends that."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
