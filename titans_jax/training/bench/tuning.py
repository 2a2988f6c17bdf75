"""What makes a comparison fair: one grid of rates for all, fresh seeds after the choice, clocks that take turns."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from titans_jax import metrics
from titans_jax.config import Experiment
from titans_jax.results import Row
from titans_jax.training.bench.rows import Rows

Training = Callable[[Experiment, metrics.Progress], Row]


def kept(rows: Rows, name: str, experiment: Experiment, bar: metrics.Progress, train: Training) -> Row:
    """The row of a training, made where it is not there yet; the bar goes on by its steps either way."""
    if name in rows.rows:
        bar.advance(experiment.train.steps)
    return rows.get(name, lambda: train(experiment, bar))


def tuned(
    rows: Rows,
    name: str,
    experiment: Experiment,
    rates: Sequence[float],
    seeds: int,
    bar: metrics.Progress,
    train: Training,
) -> tuple[float, list[Row]]:
    """The rate of least held-out loss on seed 0, and the rows of seeds 1, 2, ... at it, which the choice has not seen.

    train: an experiment -> its row, with "loss", None where it was not finite. A single rate needs no choice.
    """

    def run(rate: float, seed: int) -> Row:
        optim = dataclasses.replace(experiment.optim, peak_rate=rate)
        changed = dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, seed=seed))
        return kept(rows, f"{name} rate {rate:g} seed {seed}", changed, bar, train)

    best = rates[0]
    if len(rates) > 1:
        tried: dict[float, float | None] = {rate: run(rate, 0)["loss"] for rate in rates}
        best = min(rates, key=lambda rate: math.inf if (loss := tried[rate]) is None else loss)
    return best, [run(best, seed) for seed in range(1, seeds + 1)]


def trainings(rates: Sequence[float], seeds: int) -> int:
    """How many `tuned` makes."""
    return seeds + (len(rates) if len(rates) > 1 else 0)


def at_edge(best: float, rates: Sequence[float]) -> bool:
    """Whether a wider grid might have held a better rate."""
    return len(rates) > 1 and best in (min(rates), max(rates))


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The mean over seeds and their standard deviation (of n - 1); None where one has no value or there is but one.

    >>> mean_and_spread([1.0, 3.0]), mean_and_spread([1.0]), mean_and_spread([1.0, None])
    ((2.0, 1.414...), (1.0, None), (None, None))
    """
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return None, None
    return statistics.mean(there), statistics.stdev(there) if len(there) > 1 else None


def medians(run: Mapping[str, Callable[[], Any]], block: int, what: str, *, blocks: int = 5) -> dict[str, float]:
    """Seconds of one call, as the median over so many blocks of calls, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for call in run.values():
        jax.block_until_ready(call())  # compiles
    with metrics.progress(blocks * len(run), what) as bar:
        for _ in range(blocks):
            for name, call in run.items():
                begun = time.perf_counter()
                for _ in range(block):
                    out = call()
                jax.block_until_ready(out)
                seconds[name].append((time.perf_counter() - begun) / block)
                bar.advance()
    return {name: statistics.median(times) for name, times in seconds.items()}
