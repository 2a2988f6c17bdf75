"""A fair comparison: the same grid of rates for all, and results on seeds that the choice has not seen."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from titans_jax import metrics
from titans_jax.bench.report import Rows
from titans_jax.config import Experiment
from titans_jax.results import Column, Row

Training = Callable[[Experiment, metrics.Progress], Row]


def kept(rows: Rows, name: str, experiment: Experiment, bar: metrics.Progress, train: Training) -> Row:
    """The row of a training, made if it is not there yet; the bar advances by its steps either way."""
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
) -> Row:
    """rate: that of the least held-out loss on seed 0. seeds: the rows of seeds 1, 2, ... at this rate.

    at_edge: whether a wider grid might have a better rate. train: an experiment -> its row, with "loss", None where it
    was not finite. A single rate needs no choice.
    """

    def run(rate: float, seed: int) -> Row:
        optim = dataclasses.replace(experiment.optim, peak_rate=rate)
        changed = dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, seed=seed))
        return kept(rows, f"{name} rate {rate:g} seed {seed}", changed, bar, train)

    best, at_edge = rates[0], False
    if len(rates) > 1:
        tried: dict[float, float | None] = {rate: run(rate, 0)["loss"] for rate in rates}
        best = min(rates, key=lambda rate: math.inf if (loss := tried[rate]) is None else loss)
        at_edge = best in (min(rates), max(rates))
    return {"rate": best, "at_edge": at_edge, "seeds": [run(best, seed) for seed in range(1, seeds + 1)]}


def trainings(rates: Sequence[float], seeds: int) -> int:
    """The number of trainings in `tuned`."""
    return seeds + (len(rates) if len(rates) > 1 else 0)


RATE: Column = ("best rate", lambda row: f"{row['rate']:g}" + (", the grid's edge" if row["at_edge"] else ""))


def over_seeds(field: str, values: Sequence[float | None]) -> Row:
    """The mean and the standard deviation (of n - 1); None if a value is missing, or of a single one.

    >>> over_seeds("loss", [1.0, 3.0]), over_seeds("loss", [1.0]), over_seeds("loss", [1.0, None])
    ({'loss': 2.0, 'loss_spread': 1.414...}, {'loss': 1.0, 'loss_spread': None}, {'loss': None, 'loss_spread': None})
    """
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return {field: None, f"{field}_spread": None}
    return {field: statistics.mean(there), f"{field}_spread": statistics.stdev(there) if len(there) > 1 else None}


def mean_cell(row: Row, field: str, spec: str) -> str:
    """The text of what `over_seeds` gives."""
    if row[field] is None:
        return "not finite"
    spread = row[f"{field}_spread"]
    return format(row[field], spec) + ("" if spread is None else f" +- {spread:{spec}}")
