"""What a run holds, and the record that it keeps of its steps and its time."""

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grain
import jax
import numpy as np
import optax

from titans_jax import data, metrics, optim
from titans_jax.checkpoint import Checkpoints
from titans_jax.config import Experiment
from titans_jax.training.errors import Diverged, NotFinite
from titans_jax.training.placement import Placement

_log = logging.getLogger(__name__)
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Session:
    """What a run holds besides its TrainState."""

    experiment: Experiment
    placement: Placement
    tokenizer: data.Tokenizer
    graphdef: Any
    optimizer: optax.GradientTransformation
    batches: grain.DatasetIterator
    meta: dict[str, Any]
    checkpoints: Checkpoints
    log: metrics.Log


class Recorder:
    """Takes each step's metrics to the log and the progress bar, and keeps what took how long.

    durations: of each step, from the end of the one before, without pauses; with the waits for its batch.
    seconds: of other things, by name.
    """

    def __init__(self, session: Session, bar: metrics.Progress, compile_seconds: float) -> None:
        self.session, self.bar = session, bar
        self.tokens = session.experiment.data.batch * session.experiment.data.sequence
        self.rate = optim.learning_rate(session.experiment.optim, session.experiment.train.steps)
        self.durations: list[float] = []
        self.seconds = {"compile": compile_seconds, "data": 0.0, "evaluate": 0.0, "save": 0.0}
        self.mark = time.perf_counter()
        self.skipped = 0  # in a row

    def record(self, n: int, device_metrics: Mapping[str, Any]) -> None:
        """Wait for step n's metrics and log them. Raises NotFinite, unless the step has skipped its update."""
        values = jax.device_get(dict(device_metrics))
        now = time.perf_counter()
        self.durations.append(now - self.mark)
        self.mark = now
        memory = values.pop("memory")
        wrong = self._not_finite(values, memory)
        tokens, size = values.pop("counted")
        values["bits_per_byte"] = values.pop("nll") / math.log(2) * int(tokens) / max(int(size), 1)
        self.bar.advance(1, tokens=self.tokens, loss=float(values["loss"]))
        train = self.session.experiment.train
        if n % train.log_every == 0 or n in (1, train.steps) or wrong:
            values |= {"learning_rate": float(self.rate(n - 1)), "tokens_per_second": self.tokens_per_second}
            self.session.log.write(n, "train", values)
            if memory is not None:
                self.session.log.write(n, "memory", metrics.telemetry(memory))
        self.skipped = self.skipped + 1 if wrong else 0
        if wrong and (train.not_finite != "skip" or self.skipped >= train.patience):
            raise NotFinite(n, wrong)
        if wrong:
            note(f"step {n}: {wrong}; its update is skipped")

    def _not_finite(self, values: Mapping[str, Any], memory: Any) -> str:
        """What is not finite in a step's metrics, or ""."""
        wrong = " and ".join(name for name in ("loss", "grad_norm") if not np.isfinite(values[name]))
        if not wrong:
            return ""
        bad = [name for name, value in metrics.telemetry(memory).items() if not np.isfinite(value)]
        rule = self.session.experiment.model.memory.rule
        where = f"; the first of the memory's numbers that is not is {bad[0]} (rule {rule})" if bad else ""
        return f"{wrong} not finite{where}"

    @property
    def tokens_per_second(self) -> float:
        """Over the steps so far, without compiling, evaluating and saving."""
        return len(self.durations) * self.tokens / max(sum(self.durations), 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside out of the steps' time."""
        yield
        self.mark = time.perf_counter()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time of what happens inside to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def waiting_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the waits for them are "data"."""
        start = time.perf_counter()
        for batch in batches:
            self.seconds["data"] += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def times(self) -> dict[str, float]:
        """Seconds of this process, for result.json; `goodput` is the share of its training that steps took.

        step_p50_seconds, step_p95_seconds: half of the steps, and 95 of 100, took at most this.
        """
        seconds = {"step": sum(self.durations) - self.seconds["data"]} | self.seconds
        half, most = np.percentile(self.durations, [50, 95])
        return (
            {f"{what}_seconds": value for what, value in seconds.items()}
            | {"step_p50_seconds": float(half), "step_p95_seconds": float(most)}
            | {"goodput": seconds["step"] / sum(seconds.values())}
        )


def profiled(batches: Iterable[Batch], start: int, session: Session) -> Iterator[Batch]:
    """The batches after step `start`; while those of train.profile are computed, jax.profiler traces."""
    first, count = session.experiment.train.profile or (0, 0)
    with contextlib.ExitStack() as trace:
        for n, batch in enumerate(batches, start + 1):
            if n == first:
                trace.enter_context(jax.profiler.trace(session.experiment.output / "profile"))
            if n == first + count + 1:  # the loop asks for a batch when the step before the last one has ended
                trace.close()
            yield batch


def note(line: str) -> None:
    """Warn of what a run goes on after, on the main process."""
    if metrics.is_main():
        _log.warning(line)


def diverged(error: NotFinite, session: Session) -> Diverged:
    """The error of a run that cannot go on after a step."""
    steps = session.checkpoints.steps()
    kept = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    passing = session.experiment.train.not_finite == "stop"
    skip = "--train.not-finite skip passes over such batches; else " if passing else ""
    return Diverged(
        f"diverged at step {error.step}: {error}; {kept}; {skip}"
        "a lower --optim.peak-rate, a longer --optim.warmup or a smaller --optim.clip may help, each named to --change"
    )
