"""What a run holds, and the record that it keeps of its steps."""

import contextlib
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
from titans_jax.training.errors import Diverged
from titans_jax.training.placement import Placement


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

    def record(self, n: int, device_metrics: Mapping[str, Any]) -> None:
        """Wait for step n's metrics, check that they are finite, and log them."""
        values = jax.device_get(dict(device_metrics))
        now = time.perf_counter()
        self.steps, self.seconds, self.mark = self.steps + 1, self.seconds + now - self.mark, now
        memory = values.pop("memory")
        _require_finite(n, values, memory, self.session)
        tokens, size = values.pop("counted")
        values["bits_per_byte"] = values.pop("nll") / math.log(2) * int(tokens) / max(int(size), 1)
        self.bar.advance(1, tokens=self.tokens, loss=float(values["loss"]))
        train = self.session.experiment.train
        if n % train.log_every == 0 or n in (1, train.steps):
            values |= {"learning_rate": float(self.rate(n - 1)), "tokens_per_second": self.tokens_per_second}
            self.session.log.write(n, "train", values)
            if memory is not None:
                self.session.log.write(n, "memory", metrics.telemetry(memory))

    @property
    def tokens_per_second(self) -> float:
        """Over the steps so far, without compiling, evaluating and saving."""
        return self.steps * self.tokens / max(self.seconds, 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside out of the steps' time."""
        yield
        self.mark = time.perf_counter()


def _require_finite(n: int, values: Mapping[str, Any], memory: Any, session: Session) -> None:
    wrong = [name for name in ("loss", "grad_norm") if not np.isfinite(values[name])]
    if not wrong:
        return
    bad = [name for name, value in metrics.telemetry(memory).items() if not np.isfinite(value)]
    where = f"; the first of the memory's numbers that is not is {bad[0]}" if bad else ""
    raise diverged(n, f"{' and '.join(wrong)} not finite{where}", session)


def diverged(n: int, why: str, session: Session) -> Diverged:
    """The error of a run that cannot go on after step n."""
    steps = session.checkpoints.steps()
    kept = f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    return Diverged(
        f"diverged at step {n}: {why}; {kept}; "
        "a lower --optim.peak-rate, a longer --optim.warmup or a smaller --optim.clip may help"
    )
