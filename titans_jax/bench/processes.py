"""The clock of every measurement, and timers in processes of their own.

`python -m titans_jax.bench.processes MODULE:FUNCTION JSON` serves one timer: the function, called with the fields of
the JSON, returns it. Each line on stdin asks for one sample; each answer is a line of JSON on stdout. This module
imports no other library, so that another library has its process for itself.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LEAST = 0.2
"""The shortest sample in seconds: shorter calls are repeated."""

Timer = Callable[[], Mapping[str, Any]]
"""Takes one sample: {"cpu", "wall"}, the seconds of one call, and perhaps other fields."""


def sample(call: Callable[[], Any], times: int = 1) -> dict[str, float]:
    """The mean over `times` calls in a row. cpu: user and system seconds of all threads of the process."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    return {"cpu": (time.process_time() - cpu) / times, "wall": (time.perf_counter() - wall) / times}


def timer(call: Callable[[], Any], times: int | None = None) -> Timer:
    """A timer of a call that returns when its work is done. It is called twice here, so that it has compiled.

    times: calls of a sample; None takes as many as fill LEAST seconds.
    """
    call()
    enough = math.ceil(LEAST / max(sample(call)["wall"], 1e-6))
    return lambda: sample(call, times or enough)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def process(target: str, spec: Mapping[str, Any], python: str = sys.executable) -> Iterator[Timer]:
    """A timer in a process that ends with the block. Raises ChildProcessError, in one line, if it ends before.

    OpenMP's threads (torch's) wait asleep: beside other work, busy waiting made up nine tenths of their CPU-seconds.
    """
    paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        child = subprocess.Popen(
            [python, "-m", "titans_jax.bench.processes", target, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
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
            with contextlib.suppress(BrokenPipeError):  # of a process that has ended: `answer` says why
                requests.write("\n")
                requests.flush()
            return answer()

        try:
            answer()  # it is ready
            yield ask
        finally:
            child.kill()
            child.communicate()


def serve(arguments: Sequence[str]) -> None:
    """Make the timer, say that it is ready, answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
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


if __name__ == "__main__":
    serve(sys.argv[1:])
