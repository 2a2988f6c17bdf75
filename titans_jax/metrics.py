"""The log of a run, progress bars, memory use, and reductions of losses and telemetry to numbers."""

import json
import logging
import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from titans_jax import files
from titans_jax import waiting as waits
from titans_jax.files import Target
from titans_jax.tensorboard import Board

Item = TypeVar("Item")


def is_main() -> bool:
    """Whether this process prints and writes: the only one, or process 0 of several."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def waiting(what: str) -> AbstractContextManager[None]:
    """As `titans_jax.waiting.waiting`, on the main process."""
    return waits.waiting(what) if is_main() else nullcontext()


def count(params: Any) -> int:
    """The number of elements in a tree of arrays, or of ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def summarise(nll: float, tokens: float, correct: float, bytes: float) -> dict[str, float]:
    """`loss` (nats per token), `perplexity`, `bits_per_byte` and `accuracy` from sums over held-out text.

    bits_per_byte = nll / ln 2 / bytes, where nll is in nats and bytes is the length of the text. It can be compared
    between tokenizers. Raises ValueError if tokens or bytes is 0.

    >>> summarise(nll=math.log(2) * 8, tokens=4, correct=1, bytes=8)
    {'loss': 1.386..., 'perplexity': 4.0..., 'bits_per_byte': 1.0, 'accuracy': 0.25}
    """
    if tokens <= 0 or bytes <= 0:
        raise ValueError(f"tokens={tokens}, bytes={bytes}: nothing was scored")
    loss = float(nll) / float(tokens)
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": float(nll) / math.log(2) / float(bytes),
        "accuracy": float(correct) / float(tokens),
    }


def layer_means(info: Any) -> Any:
    """The mean of each array of a pytree over all axes but the first: [layers, ...] -> [layers]."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=tuple(range(1, x.ndim)), dtype=jnp.float32), info)


def telemetry(info: Any) -> dict[str, float]:
    """The `layer_means` of a pytree as a dict with keys such as `layer_0/surprise`.

    Booleans give fractions, nested records nested names (`layer_0/gates/rate`).

    >>> telemetry({"surprise": np.array([[1.0, 3.0], [4.0, 6.0]]), "clipped": np.array([[True, False]] * 2)})
    {'layer_0/clipped': 0.5, 'layer_0/surprise': 2.0, 'layer_1/clipped': 0.5, 'layer_1/surprise': 5.0}
    """
    named = [
        (f"layer_{layer}/{jax.tree_util.keystr(path, simple=True, separator='/')}", float(value))
        for path, values in jax.tree_util.tree_leaves_with_path(jax.device_get(layer_means(info)))
        for layer, value in enumerate(values)
    ]
    return dict(sorted(named, key=lambda pair: int(pair[0].split("/")[0].removeprefix("layer_"))))


def resident_bytes() -> int:
    """The resident memory of this process, in bytes; without /proc, the largest it ever was.

    It excludes mapped files, such as libraries, since the system drops and reloads their pages.
    """
    statm = Path("/proc/self/statm")
    if statm.exists():
        _, resident, mapped = map(int, statm.read_text(encoding="utf-8").split()[:3])
        return (resident - mapped) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Footprint:
    """The growth of resident memory, and the number of compilations, in a loop after its warm-up.

    Use `with Footprint(warm_up=64) as footprint:` and call `footprint.step()` after each step. Resident memory is the
    minimum over SAMPLES steps, since a step's buffers may be freed later than its results are ready.
    """

    SAMPLES = 16

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.steps, self.compiled = warm_up, 0, 0
        self._samples: list[int] = []
        self._minimum = self._growth = 0

    def step(self) -> int:
        """Count a step and return the resident memory in bytes."""
        self.steps += 1
        self._samples = [*self._samples[-self.SAMPLES + 1 :], resident_bytes()]
        if self.steps <= self.warm_up:
            self._minimum, self.compiled = min(self._samples), 0
        elif self.steps >= self.warm_up + self.SAMPLES:
            self._minimum = min(self._minimum, min(self._samples))
            self._growth = max(self._growth, min(self._samples) - self._minimum)
        return self._samples[-1]

    def found(self) -> dict[str, int | None]:
        """The figures for result.json; growth and compilations are None before the end of the warm-up.

        resident_growth_bytes is the largest rise above the minimum so far. Cached compilations count.
        """
        warm = self.steps >= self.warm_up + self.SAMPLES
        return {
            "resident_bytes": resident_bytes(),
            "warm_up_steps": self.warm_up,
            "resident_growth_bytes": self._growth if warm else None,
            "compilations_after_warm_up": self.compiled if warm else None,
        }

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.compiled += event == "/jax/core/compile/backend_compile_duration"

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)


class Log(AbstractContextManager["Log"]):
    """A log of numbers by step, in `output_dir/metrics.jsonl` (one record per line) and `output_dir/tensorboard`.

    `step=None` starts a new log. `step=s` continues after step s: it removes records of later steps, an incomplete last
    line and, with a warning, damaged lines, so the file equals that of an uninterrupted run. This requires that the
    records of a step are written before its checkpoint is saved. Of several processes, only the main one writes.
    """

    def __init__(self, output_dir: Target, *, step: int | None = None) -> None:
        self._writes = is_main()
        if not self._writes:
            return
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = path = directory / "metrics.jsonl"
        kept = [] if step is None else [record for record in _records(path) if record["step"] <= step]
        files.write(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        board = directory / "tensorboard"
        if step is None:
            files.remove(board)
        self._board = Board(board, step=step)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Append a record {"step", "split", **values}; `split` is "train", "held_out", "memory" or "time".

        Values are numbers or 0-d arrays; others raise ValueError. Values that are not finite become null, as JSON has
        no NaN.
        """
        if not self._writes:
            return
        numbers = {name: number(name, value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with files.naming(self._path):
            self._file.write(json.dumps({"step": int(step), "split": split} | finite) + "\n")
            self._file.flush()
        self._board.write(int(step), {f"{split}/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        """Close both files."""
        if self._writes:
            with files.naming(self._path):
                self._file.close()
            self._board.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def read_records(output_dir: Target) -> list[dict[str, Any]]:
    """The records of `output_dir/metrics.jsonl`, with NaN for null, without damaged ones. Raises FileNotFoundError."""
    path = Path(output_dir) / "metrics.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no log here; train first")
    return [{name: math.nan if value is None else value for name, value in each.items()} for each in _records(path)]


class Progress(AbstractContextManager["Progress"]):
    """A progress bar on stderr with tokens per second (`rate`), time left and the latest values.

    Use `with Progress(1000, "train") as bar:` and `bar.advance(1, tokens=4096, loss=2.1)`. On a terminal it is redrawn
    in place; elsewhere (a log file, CI) it prints a line every ten seconds. Its clock runs on without an advance, such
    as while a step is compiled. total: None if it is not known. Of several processes, only the main one prints.
    """

    def __init__(self, total: int | None, desc: str, *, initial: int = 0, unit: str = "tokens") -> None:
        stream = sys.stderr
        live = stream.isatty() and is_main()
        share = "" if total is None else "{percentage:3.0f}%|{bar}| " if live else "{percentage:3.0f}% "
        self._bar = tqdm(
            total=total,
            desc=desc,
            initial=initial,
            file=stream if live else _Lines(stream),
            mininterval=0.2 if live else 10.0,
            maxinterval=math.inf,
            miniters=1,
            dynamic_ncols=live,
            bar_format="{desc} " + share + "{n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]",
        )
        self._unit, self._done = unit, threading.Event()
        self._clock = threading.Thread(target=self._tick, args=(1.0 if live else 10.0,), daemon=True)
        self._clock.start()
        self._tokens, self.rate = 0, 0.0
        self._started: float | None = None
        self._values: dict[str, str] = {}

    def advance(self, steps: int = 1, *, tokens: int = 0, **values: float) -> None:
        """Advance by `steps`, in which `tokens` were read, and show `values` until they are replaced.

        The clock of tokens per second starts at the first call, so that it excludes compilation.
        """
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        else:
            self._tokens += tokens
        self._values |= {name: f"{value:.4g}" for name, value in values.items()}
        self.rate = self._tokens / (now - self._started) if self._tokens else 0.0
        shown = self._values | ({f"{self._unit}/s": tqdm.format_sizeof(self.rate)} if self.rate else {})
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps)

    def each(self, items: Iterable[Item], count: Callable[[Item], int] = lambda item: 1) -> Iterator[Item]:
        """Yield items; after each one advance by the steps, and the tokens, that it counts for."""
        for item in items:
            yield item
            steps = count(item)
            self.advance(steps, tokens=steps)

    def _tick(self, seconds: float) -> None:
        while not self._done.wait(seconds):
            if time.time() - self._bar.last_print_t >= seconds:
                self._bar.refresh()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._clock.join()
        self._bar.close()


class _Lines:
    """A text stream for tqdm that writes each redraw as a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if is_main() and (line := text.strip()):
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def number(name: str, value: Any) -> int | float:
    """A number or 0-d array as int or float. Raises ValueError, which contains `name`, for any other value."""
    array = np.asarray(value)
    if array.ndim or not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise ValueError(f"{name}: expected a number, not {value!r}")
    return int(array) if jnp.issubdtype(array.dtype, jnp.integer) else float(array)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log, without an incomplete last line, and lines that a crash of the machine has damaged."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            _ = int(record["step"]), record["split"]
        except (ValueError, TypeError, KeyError):
            logging.getLogger(__name__).warning("%s, line %d is damaged and left out", path, number)
        else:
            yield record
