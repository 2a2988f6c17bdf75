"""Timers in processes of their own: `python -m titans_jax.bench.processes MODULE:FUNCTION JSON` serves one.

The function, called with the fields of the JSON, returns a timer. Each line on stdin asks for one sample; each answer
is a line of JSON on stdout. This module imports no other library, so that another library has its process for itself.
"""

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from titans_jax.bench.clock import Timer

Start = Callable[..., Callable[[], Timer]]


@contextlib.contextmanager
def process(target: str, *, python: str = sys.executable, **spec: Any) -> Iterator[Timer]:
    """A timer in a process that ends with the block. Raises ChildProcessError, in one line, if it ends before.

    OpenMP's threads (torch's) wait asleep: beside other work, busy waiting made up nine tenths of their CPU-seconds.
    """
    paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(
            [python, "-m", "titans_jax.bench.processes", target, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert child.stdin is not None and child.stdout is not None
        requests, answers = child.stdin, child.stdout

        def answer() -> dict[str, Any]:
            if line := answers.readline():
                return dict(json.loads(line))
            code = child.wait()
            stderr.seek(0)
            last = (stderr.read().strip() or f"exit code {code}").splitlines()[-1]
            raise ChildProcessError(f"{target}: its process ended: {last}")

        def ask() -> dict[str, Any]:
            requests.write("\n")
            requests.flush()
            return answer()

        try:
            answer()  # it is ready
            yield ask
        finally:
            child.kill()
            child.communicate()


@contextlib.contextmanager
def processes() -> Iterator[Start]:
    """start(target, **spec) -> a function that makes the timer of `process`; all processes end with the block."""
    with contextlib.ExitStack() as stack:
        yield lambda target, **spec: lambda: stack.enter_context(process(target, **spec))


def once(target: str, **spec: Any) -> Timer:
    """A timer that takes every sample in a fresh process, which has ended before the next one begins."""

    def take() -> Mapping[str, Any]:
        with process(target, **spec) as ask:
            return ask()

    return take


def serve(arguments: Sequence[str]) -> None:
    """Make the timer, say that it is ready, answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the timer prints goes to stderr: it is not an answer
    target, spec = arguments
    module, _, function = target.partition(":")
    take: Timer = getattr(importlib.import_module(module), function)(**json.loads(spec))
    print(json.dumps({"ready": True}), file=out, flush=True)
    for _ in sys.stdin:
        print(json.dumps(dict(take()) | {"peak_bytes": peak_bytes()}), file=out, flush=True)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> int | None:
    """Reset the peak to what the process holds now, and return that; None where the system cannot."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/statm")
    try:
        clear.write_text("5", encoding="ascii")
    except OSError:
        return None
    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def echo(**spec: Any) -> Timer:
    """A timer without work; its sample holds what it was called with."""
    return lambda: {"cpu": 0.0, "wall": 0.0} | spec


if __name__ == "__main__":
    serve(sys.argv[1:])
