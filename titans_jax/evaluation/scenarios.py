"""Memories that read the scenarios of `data.series`: a picture and a few numbers of each."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from titans_jax import plots
from titans_jax.data import SCENARIOS, Scenario
from titans_jax.evaluation.surprise import FOUND, anomaly_scores, percentile_of_others, precision_recall
from titans_jax.memory import SeriesMemory, SeriesRecord, series_memory, series_rule


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
    """Read a series [T] or [T, D] with a memory as it is born from a seed, and draw its dashboard to `path`.

    mask: [T] bool, the steps to mark, each a `mark`. memory: None for one of `series_rule()`. Returns the record.
    Raises ValueError as `series_memory` and `plots.surprise_dashboard`.
    """
    values = np.asarray(series, np.float32)
    columns = values.reshape(len(values), -1)
    memory = memory or series_memory(series_rule(), columns.shape[1])
    record = _read(memory, columns, momentum, forget_rate, seed)
    plots.surprise_dashboard(values, record, path, mask=mask, title=title, mark=mark)
    return record


def run_scenario(
    name: str, folder: Path, *, memory: SeriesMemory | None = None, seed: int = 42
) -> dict[str, float | None]:
    """Read a scenario, draw scenario_NAME.png into the folder, and return numbers of every reading.

    They are the memory's last norm and, where the marks are anomalies and the rule's loss an error: precision and
    recall of scores above FOUND from where the pattern has been seen twice, and there the least surprise of an anomaly,
    the 99th percentile and the largest of the other steps; the precision is None where nothing was found.
    Raises ValueError for an unknown name.
    """
    if name not in SCENARIOS:
        raise ValueError(f"scenario: {name!r}; known are {', '.join(SCENARIOS)}")
    scenario, memory = SCENARIOS[name], memory or series_memory(series_rule())
    path, (series, mask) = folder / f"scenario_{name}.png", scenario.make()
    records = {label: _read(memory, series[:, None], *how, seed) for label, how in scenario.readings.items()}
    if scenario.shows is None:
        [(label, record)] = records.items()
        title = f"{scenario.title} ({label})"
        plots.surprise_dashboard(series, record, path, mask=mask, title=title, mark=scenario.mark)
    else:
        lines = {label: getattr(record, scenario.shows) for label, record in records.items()}
        plots.surprise_grid(lines, path, mask=mask, title=scenario.title, ylabel=_NAMES[scenario.shows])
    each = {label.replace(", ", "_").replace(" ", "_"): _numbers(scenario, r, mask) for label, r in records.items()}
    return {f"scenario_{name}_{label}_{n}": x for label, numbers in each.items() for n, x in numbers.items()}


_NAMES = {"momentum": "norm of the momentum", "weight_norm": "norm of the weights"}


def _read(memory: SeriesMemory, series: np.ndarray, momentum: float, forget_rate: float, seed: int) -> SeriesRecord:
    state = memory.init(jax.random.key(seed))
    return memory.process(state, jnp.asarray(series), momentum=momentum, forget_rate=forget_rate, snapshots=True)[0]


def _numbers(scenario: Scenario, record: SeriesRecord, mask: np.ndarray) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {"weight_norm": float(record.weight_norm[-1])}
    surprise, later = np.asarray(record.surprise), np.arange(len(mask)) >= scenario.learned
    if scenario.mark != "anomaly" or surprise.min() < 0:
        return numbers
    precision, recall = precision_recall((anomaly_scores(surprise) > FOUND) & later, mask & later)
    return numbers | {
        "precision": None if math.isnan(precision) else precision,
        "recall": recall,
        "least_anomaly": float(surprise[mask & later].min()),
        "percentile_99": percentile_of_others(surprise, mask, scenario.learned),
        "largest_other": percentile_of_others(surprise, mask, scenario.learned, 100),
    }
