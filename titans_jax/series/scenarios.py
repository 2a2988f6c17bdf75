"""Four series that surprise a memory, read by one: a picture and a few numbers of each."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from titans_jax import plots
from titans_jax.series.generators import Mask, Series, generate_frequency_shift, generate_repeating_with_anomalies
from titans_jax.series.memory import SeriesMemory, SeriesRecord, series_memory, series_rule
from titans_jax.series.surprise import THRESHOLD, anomaly_scores, percentile_of_others, precision_recall


class Scenario(NamedTuple):
    """A series, and how a memory reads it: once, or several times to compare.

    make: () -> series [T] and a mask [T] of the steps to mark.
    learned: the first step at which the pattern has been seen twice.
    mark: what a marked step is.
    readings: momentum and forget rate of each reading, by name.
    compared: the field of `SeriesRecord` that several readings are compared by.
    """

    title: str
    make: Callable[[], tuple[Series, Mask]]
    learned: int
    mark: str = "anomaly"
    readings: Mapping[str, tuple[float, float]] = MappingProxyType({"momentum 0.9, forget rate 0.01": (0.9, 0.01)})
    compared: str | None = None


def _marked_shift(length: int, base_freq: float, shifted_freq: float, shift_at: int) -> tuple[Series, Mask]:
    series, shifts = generate_frequency_shift(length, base_freq, shifted_freq, shift_at)
    return series, np.isin(np.arange(length), shifts)


_SPIKES = functools.partial(generate_repeating_with_anomalies, (1, 2, 3, 4), 15, (12, 30, 45), 80)
SCENARIOS = {
    "1": Scenario(
        "A repeating pattern with anomalies",
        functools.partial(generate_repeating_with_anomalies, (1, 2, 3), 20, (14, 35, 50), 99),
        learned=6,
    ),
    "2": Scenario(
        "A wave that changes its frequency",
        functools.partial(_marked_shift, 200, 0.05, 0.2, 100),
        learned=40,
        mark="shift",
    ),
    "3": Scenario(
        "Momentum carries surprise on",
        _SPIKES,
        learned=8,
        readings={f"momentum {momentum}": (momentum, 0.01) for momentum in (0.0, 0.5, 0.9, 0.99)},
        compared="momentum",
    ),
    "4": Scenario(
        "Forgetting bounds the memory",
        _SPIKES,
        learned=8,
        readings={f"forget rate {rate}": (0.9, rate) for rate in (0.0, 0.005, 0.02, 0.1)},
        compared="weight_norm",
    ),
}
_AXIS_LABELS = {"momentum": "norm of the momentum", "weight_norm": "norm of the weights"}


def draw_reading(
    series: ArrayLike,
    path: str | os.PathLike[str],
    *,
    mask: ArrayLike | None = None,
    title: str = "",
    mark: str = "anomaly",
    momentum: float = 0.9,
    forget_rate: float = 0.01,
    memory: SeriesMemory | None = None,
    seed: int = 42,
) -> SeriesRecord:
    """Read a series with a fresh memory, and draw the dashboard of the reading.

    Args:
      series: [T] or [T, D].
      path: the picture.
      mask: [T] bool, the steps to mark; mark is what they are.
      memory: None for one of `series_rule()`.
      seed: of the memory's first weights.

    Returns the record of the reading.

    Raises ValueError: as `series_memory` and `plots.surprise_dashboard`.
    """
    values = np.asarray(series, np.float32)
    columns = values.reshape(len(values), -1)
    memory = memory or series_memory(series_rule(), columns.shape[1])
    record = _read(memory, columns, momentum, forget_rate, seed)
    plots.surprise_dashboard(values, record, path, mask=mask, title=title, mark=mark)
    return record


def draw_learning(path: str | os.PathLike[str], seed: int = 42) -> SeriesRecord:
    """Draw a memory that learns a wave, is surprised when the wave changes, and learns the new one.

    path: the picture. seed: of the memory's first weights. Returns the record of the reading.
    """
    series, [shift] = generate_frequency_shift(280, 0.05, 0.2, 150)
    record = _read(series_memory(series_rule()), series[:, None], momentum=0.9, forget_rate=0.001, seed=seed)
    plots.learning_picture(series, record.prediction[:, 0], record.surprise, int(shift), path)
    return record


def run_scenario(
    name: str, folder: Path, *, memory: SeriesMemory | None = None, seed: int = 42
) -> dict[str, float | None]:
    """Read a scenario and draw scenario_NAME.png into the folder.

    Returns numbers of every reading. weight_norm: at the end. Where the marks are anomalies and the rule's loss is an
    error, also, over the steps from `Scenario.learned` on:
      precision and recall of scores above THRESHOLD; the precision is None where there is no such score,
      least_anomaly, the least surprise of an anomaly,
      percentile_99 and largest_other, of the surprise of the other steps.

    Raises ValueError: the name is unknown.
    """
    if name not in SCENARIOS:
        raise ValueError(f"scenario: {name!r}; it must be one of {', '.join(SCENARIOS)}")
    scenario, memory = SCENARIOS[name], memory or series_memory(series_rule())
    path, (series, mask) = folder / f"scenario_{name}.png", scenario.make()
    records = {label: _read(memory, series[:, None], *rates, seed) for label, rates in scenario.readings.items()}
    if scenario.compared is None:
        [(label, record)] = records.items()
        title = f"{scenario.title} ({label})"
        plots.surprise_dashboard(series, record, path, mask=mask, title=title, mark=scenario.mark)
    else:
        lines = {label: getattr(record, scenario.compared) for label, record in records.items()}
        plots.surprise_grid(lines, path, mask=mask, title=scenario.title, ylabel=_AXIS_LABELS[scenario.compared])
    numbers = {label.replace(", ", "_").replace(" ", "_"): _numbers(scenario, r, mask) for label, r in records.items()}
    return {f"scenario_{name}_{label}_{n}": x for label, row in numbers.items() for n, x in row.items()}


def _read(memory: SeriesMemory, series: np.ndarray, momentum: float, forget_rate: float, seed: int) -> SeriesRecord:
    state = memory.init(jax.random.key(seed))
    return memory.process(state, jnp.asarray(series), momentum=momentum, forget_rate=forget_rate, snapshots=True)[0]


def _numbers(scenario: Scenario, record: SeriesRecord, mask: Mask) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {"weight_norm": float(record.weight_norm[-1])}
    surprise, later = np.asarray(record.surprise), np.arange(len(mask)) >= scenario.learned
    if scenario.mark != "anomaly" or surprise.min() < 0:
        return numbers
    precision, recall = precision_recall((anomaly_scores(surprise) > THRESHOLD) & later, mask & later)
    return numbers | {
        "precision": None if math.isnan(precision) else precision,
        "recall": recall,
        "least_anomaly": float(surprise[mask & later].min()),
        "percentile_99": percentile_of_others(surprise, mask, scenario.learned),
        "largest_other": percentile_of_others(surprise, mask, scenario.learned, 100),
    }
