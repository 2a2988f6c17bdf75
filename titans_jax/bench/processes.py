"""Timers in processes of their own: `python -m titans_jax.bench.processes MODULE:FUNCTION JSON` serves one.

The function, called with the fields of the JSON, returns a timer. Each line on stdin asks for one sample; each answer
is a line of JSON on stdout. This module imports no other library, so that another library has its process for itself.
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from titans_jax.bench.clock import Timer

Start = Callable[..., Callable[[], Timer]]


class Process:
    """The process of one timer. Raises ChildProcessError, in one line, if it ends before it has answered.

    OpenMP's threads (torch's) wait asleep: beside other work, busy waiting made up nine tenths of their CPU-seconds.
    """

    def __init__(self, target: str, spec: dict[str, Any], python: str) -> None:
        paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        self._target, self._stderr = target, tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "titans_jax.bench.processes", target, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            last = (self._stderr.read().strip() or f"exit code {code}").splitlines()[-1]
            raise ChildProcessError(f"{self._target}: its process ended: {last}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self) -> dict[str, Any]:
        """One sample."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()


@contextlib.contextmanager
def processes() -> Iterator[Start]:
    """start(target, python=sys.executable, **spec) -> what makes the timer; its process ends with the block."""
    with contextlib.ExitStack() as stack:

        def make(target: str, spec: dict[str, Any], python: str) -> Timer:
            process = stack.enter_context(Process(target, spec, python))
            process.answer()
            return process.ask

        def start(target: str, *, python: str = sys.executable, **spec: Any) -> Callable[[], Timer]:
            return functools.partial(make, target, spec, python)

        yield start


def once(target: str, **spec: Any) -> Timer:
    """A timer that takes every sample in a fresh process, which has ended before the next one begins."""

    def take() -> dict[str, Any]:
        with Process(target, spec, sys.executable) as process:
            process.answer()
            return process.ask()

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
