"""Subjects in processes of their own, as `worker` serves them; all of them end with the block that holds them."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from titans_jax.speed.clock import Timer


class Process:
    """One worker. Raises ChildProcessError, in one line, where it ends before it has answered.

    OpenMP's threads (torch's) wait asleep: beside other work, busy waiting made up nine tenths of their CPU-seconds.
    """

    def __init__(self, target: str, spec: dict[str, Any], python: str) -> None:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self._target, self._said = target, tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "titans_jax.speed.worker", target, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE"}
            | dict(os.environ)
            | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip() or f"exit code {code}").splitlines()[-1]
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
        self._said.close()


Start = Callable[..., Callable[[], Timer]]


@contextlib.contextmanager
def processes() -> Iterator[Start]:
    """start(target, python=sys.executable, **spec): a `make` whose process lives until the block ends."""
    with contextlib.ExitStack() as stack:

        def make(target: str, spec: dict[str, Any], python: str) -> Timer:
            process = stack.enter_context(Process(target, spec, python))
            process.answer()
            return process.ask

        def start(target: str, *, python: str = sys.executable, **spec: Any) -> Callable[[], Timer]:
            return functools.partial(make, target, spec, python)

        yield start


def once(target: str, **spec: Any) -> Timer:
    """A timer whose every sample is of a fresh process, which is gone before the next one begins."""

    def take() -> dict[str, Any]:
        with Process(target, spec, sys.executable) as process:
            process.answer()
            return process.ask()

    return take
