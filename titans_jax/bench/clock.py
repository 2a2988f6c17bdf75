"""The clock of every measurement: CPU-seconds of the process and wall seconds of a call. Imports no other library."""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LEAST = 0.2
"""The shortest sample in seconds: shorter calls are repeated."""


class Sample(NamedTuple):
    """Seconds of one call: cpu, user and system over all threads of the process; wall."""

    cpu: float
    wall: float


Timer = Callable[[], Mapping[str, Any]]
"""Takes one sample: {"cpu", "wall"} and perhaps other fields."""


def sample(call: Callable[[], Any], times: int = 1) -> Sample:
    """The mean over `times` calls in a row."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    return Sample((time.process_time() - cpu) / times, (time.perf_counter() - wall) / times)


def timer(call: Callable[[], Any]) -> Timer:
    """A timer of a call that returns when its work is done. It is called twice here, so that it has compiled."""
    call()
    times = math.ceil(LEAST / max(sample(call).wall, 1e-6))
    return lambda: sample(call, times)._asdict()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
