"""What a run holds, and the record that it keeps of its steps."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    """Takes each step's metrics to the log and the progress bar, and keeps the time that steps took."""

    def __init__(self, session: Session, bar: metrics.Progress) -> None:
        self.session, self.bar = session, bar
        self.tokens = session.experiment.data.batch * session.experiment.data.sequence
        self.rate = optim.learning_rate(session.experiment.optim, session.experiment.train.steps)
        self.steps, self.seconds, self.mark = 0, 0.0, time.perf_counter()
        self.skipped = 0  # in a row

    def record(self, n: int, device_metrics: Mapping[str, Any]) -> None:
        """Wait for step n's metrics and log them. Raises NotFinite, unless the step has skipped its update."""
        values = jax.device_get(dict(device_metrics))
        now = time.perf_counter()
        self.steps, self.seconds, self.mark = self.steps + 1, self.seconds + now - self.mark, now
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
        return self.steps * self.tokens / max(self.seconds, 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside out of the steps' time."""
        yield
        self.mark = time.perf_counter()


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
