"""What a run reports while it runs: a log by step, a progress bar, and telemetry reduced to numbers."""

import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from titans_jax import files


def count(params: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def summarise(nll: float, tokens: float, correct: float, bytes: float) -> dict[str, float]:
    """Reduces sums over held-out text to `loss` (nats a token), `perplexity`, `bits_per_byte` and `accuracy`.

    bits per byte = nll / ln 2 / bytes, with `nll` in nats summed over tokens and `bytes` the length of their text:
    the one number that does not depend on the tokenizer. Raises ValueError if there is no token or no byte.

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
    """The mean over all but the first axis of each array of a pytree: [layers, ...] -> [layers]."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=tuple(range(1, x.ndim)), dtype=jnp.float32), info)


def telemetry(info: Any) -> dict[str, float]:
    """Means over all but the first axis (layers) of every array in a pytree, named such as `layer_0/surprise`.

    Booleans give fractions; nested records give nested names (`layer_0/gates/rate`); None gives nothing.

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
    """Memory that this process holds of its own now; where the system does not say (no /proc), the most it ever held.

    Files it has mapped, such as libraries, are left out: the system drops their pages and loads them again as it likes.
    """
    statm = Path("/proc/self/statm")
    if statm.exists():
        _, resident, mapped = map(int, statm.read_text().split()[:3])
        return (resident - mapped) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Footprint:
    """What a loop's steps leave in a process once it is warm: growth of resident memory, and programs compiled.

    `with Footprint(warm_up=64) as footprint:` and `footprint.step()` after each step. What is left is the least of
    every SAMPLES samples: a step's own buffers may be there a moment longer than its results.
    """

    SAMPLES = 16

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.steps, self.compiled = warm_up, 0, 0
        self._samples: list[int] = []
        self._least = self._growth = 0

    def step(self) -> int:
        """Counts a step; returns the bytes that the process holds now."""
        self.steps += 1
        self._samples = [*self._samples[-self.SAMPLES + 1 :], resident_bytes()]
        if self.steps <= self.warm_up:
            self._least, self.compiled = min(self._samples), 0
        elif self.steps >= self.warm_up + self.SAMPLES:
            self._least = min(self._least, min(self._samples))
            self._growth = max(self._growth, min(self._samples) - self._least)
        return self._samples[-1]

    def found(self) -> dict[str, int | None]:
        """After the warm-up: compilations, cached ones included, and the most that memory rose above its least by then.

        None before.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)


class Log:
    """Numbers by step, in `output_dir/metrics.jsonl` (a line a record, on disk at once) and `output_dir/tensorboard`.

    With `step=None` a log begins anew; with `step=s` it goes on after step s: records of later steps, and a last line
    that was cut off, are removed, so the file becomes what it would have been without the interruption. For that,
    write the records of a step before saving the checkpoint of that step.
    """

    def __init__(self, output_dir: str | os.PathLike[str], *, step: int | None = None) -> None:
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = [] if step is None else [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        files.write(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        board = directory / "tensorboard"
        if step is None:
            shutil.rmtree(board, ignore_errors=True)
        self._board = SummaryWriter(str(board), purge_step=None if step is None else step + 1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends one record {"step", "split", **values}; `split` is such as "train", "held_out" or "memory".

        Values are numbers or 0-d arrays; one that is not finite becomes null, which JSON can say.
        Raises ValueError for anything else.
        """
        numbers = {name: number(name, value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": int(step), "split": split} | finite) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{split}/{name}", value, int(step))

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(output_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of `output_dir/metrics.jsonl`, in order, with nan for null. Raises FileNotFoundError."""
    path = Path(output_dir) / "metrics.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no log here; train first")
    records = (json.loads(line) for line in _whole_lines(path))
    return [{name: math.nan if value is None else value for name, value in record.items()} for record in records]


class Progress:
    """A bar on stderr with tokens per second (`rate`), time left and the latest values; see `progress`."""

    def __init__(self, total: int | None, desc: str, *, initial: int = 0, unit: str = "tokens") -> None:
        stream = sys.stderr
        live = stream.isatty()
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
        self._unit = unit
        self._tokens, self.rate = 0, 0.0
        self._started: float | None = None
        self._values: dict[str, str] = {}

    def advance(self, steps: int = 1, *, tokens: int = 0, **values: float) -> None:
        """Moves on by `steps` in which `tokens` were read; `values` are shown until replaced.

        The first call starts the clock of tokens per second, so that compiling does not count.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def progress(total: int | None, desc: str, *, initial: int = 0, unit: str = "tokens") -> Progress:
    """A progress bar for `with progress(1000, "train") as bar: ... bar.advance(1, tokens=4096, loss=2.1)`.

    On a terminal it is redrawn in place; elsewhere (a log file, CI) it is a plain line every ten seconds. A total of
    None is one that nobody knows.
    """
    return Progress(total, desc, initial=initial, unit=unit)


class _Lines:
    """A text stream for tqdm that turns what would be redrawn in place into lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def number(name: str, value: Any) -> int | float:
    """The int or float of a number or 0-d array. Raises ValueError, with its name, for anything else."""
    array = np.asarray(value)
    if array.ndim or not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise ValueError(f"{name}: expected a number, not {value!r}")
    return int(array) if jnp.issubdtype(array.dtype, jnp.integer) else float(array)


def _whole_lines(path: Path) -> Iterable[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
