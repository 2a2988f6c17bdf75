"""A process of its own for one subject: `python -m titans_jax.speed.worker MODULE:FUNCTION JSON`.

The function, called with what the JSON says, returns a timer. Each line of stdin asks for one sample, answered on
stdout in JSON. Knows no other library, so that another library's process stays its own.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titans_jax.speed.clock import Timer


def main(arguments: Sequence[str]) -> None:
    """Make the subject, say that it is ready, answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
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


def forget_peak() -> int | None:
    """Let the peak begin anew and return what is held now; None where the system cannot."""
    about, status = Path("/proc/self/clear_refs"), Path("/proc/self/statm")
    try:
        about.write_text("5", encoding="ascii")
    except OSError:
        return None
    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def echo(**spec: Any) -> Timer:
    """A subject without work, which says what it was asked for."""
    return lambda: {"cpu": 0.0, "wall": 0.0} | spec


if __name__ == "__main__":
    main(sys.argv[1:])
