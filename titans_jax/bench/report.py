"""Rows of measurements: on disk, so that an interrupted benchmark resumes, their means and extremes, and tables."""

import functools
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from titans_jax import __version__, files
from titans_jax.json_values import changes
from titans_jax.results import Row, markdown


class Rows:
    """The rows in FOLDER/rows.json by name, with the settings they were made under and the machine.

    Raises ValueError if the folder holds rows of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.rows = folder / "rows.json", dict[str, Row]()
        self.settings = json.loads(json.dumps(settings))
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            for path, old, new in changes(stored["settings"], self.settings):
                raise ValueError(f"{folder} holds rows with {path} = {old}, not {new}; give another --output-dir")
            self.rows = stored["rows"]

    def get(self, name: str, make: Callable[[], Row]) -> Row:
        """The row of this name; it is made and written if it is not there yet."""
        if name not in self.rows:
            self.rows[name] = make()
            self.write(self.path)
        return self.rows[name]

    def write(self, path: Path, **found: Any) -> None:
        """Write settings, machine, what was found, and rows as JSON."""
        files.write_json(path, {"settings": self.settings, "machine": machine(), **found, "rows": self.rows})


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    devices = jax.devices()
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "titans_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processor": next(names, platform.processor()),
        "cores": os.cpu_count(),
    }


def spread(field: str, values: Sequence[float]) -> Row:
    """Of rounds: the median under the field's name, and the least and most beside it.

    >>> spread("cpu", [3.0, 1.0, 2.0])
    {'cpu': 2.0, 'cpu_least': 1.0, 'cpu_most': 3.0}
    """
    return {field: statistics.median(values), f"{field}_least": min(values), f"{field}_most": max(values)}


def over_seeds(field: str, values: Sequence[float | None]) -> Row:
    """The mean and the standard deviation (of n - 1); None if a value is missing, or of a single one.

    >>> over_seeds("loss", [1.0, 3.0]), over_seeds("loss", [1.0]), over_seeds("loss", [1.0, None])
    ({'loss': 2.0, 'loss_spread': 1.414...}, {'loss': 1.0, 'loss_spread': None}, {'loss': None, 'loss_spread': None})
    """
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return {field: None, f"{field}_spread": None}
    return {field: statistics.mean(there), f"{field}_spread": statistics.stdev(there) if len(there) > 1 else None}


HEADS = {
    "times_cpu": ("CPU-seconds, first over second (least to most)", ".3g"),
    "times_wall": ("wall time", ".3g"),
    "cpu_ms": ("CPU-ms of 1,000 tokens (least to most)", ".4g"),
    "wall_ms": ("wall ms of 1,000 tokens", ".4g"),
    "cpu_s": ("CPU-s (least to most)", ".3g"),
    "wall_s": ("wall s", ".3g"),
    "rate": ("rate", "g"),
    "edge": ("at the grid's edge", ""),
    "loss": ("held-out loss", ".4f"),
    "perplexity": ("perplexity", ".3f"),
    "bits_per_byte": ("bits per byte", ".4f"),
    "accuracy": ("accuracy", ".4f"),
    "first_loss": ("first loss", ".3f"),
    "final_loss": ("final loss", ".3f"),
    "fall": ("fall", ".1%"),
    "finite": ("finite", ""),
    "within": ("accuracy within the length of training", ".1%"),
    "beyond": ("accuracy from there to twice the length", ".1%"),
    "learned": ("seeds that learned", ""),
    "each": ("by seed", ""),
    "step_cost": ("step", ".2f"),
    "update_cost": ("update", ".2f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "train_tokens_per_second": ("training tokens/s", ",.0f"),
    "flops_per_token": ("FLOPs a token", ",.0f"),
    "gflops_per_cpu_s": ("GFLOP/CPU-s", ".1f"),
    "share": ("share of the matmul rate (least to most)", ".1%"),
    "steps": ("steps of scans in sequence", ",d"),
    "cycles": ("cycles a token by the TPU compiler", ",.0f"),
    "peak_bytes": ("peak memory of the process, bytes", ",.0f"),
    "bytes_per_token": ("bytes a token", ",.0f"),
    "state_bytes": ("state bytes", ",d"),
    "step_bytes": ("bytes of a training step", ",.0f"),
    "parameters": ("parameters", ",d"),
    "changed": ("changed to match", ""),
}
"""The columns of a benchmark's table in order: the title and the format of each field."""


def table(rows: Mapping[str, Row], heads: Mapping[str, tuple[str, str]] = HEADS, first: str = "what") -> str:
    """Markdown with the columns that a row has a field for: "-" where it is None, "not finite" in a mean over seeds.

    >>> timed, diverged = spread("cpu_ms", [1.0, 2.0, 3.0]), over_seeds("loss", [None])
    >>> print(table({"a": timed, "b": diverged}))
    | what | CPU-ms of 1,000 tokens (least to most) | held-out loss |
    | --- | --- | --- |
    | a | 2 (1 to 3) | - |
    | b | - | not finite |
    """
    columns = [
        (title, functools.partial(_cell, field, spec))
        for field, (title, spec) in heads.items()
        if any(field in row for row in rows.values())
    ]
    return markdown(columns, rows, first)


def _cell(field: str, spec: str, row: Row) -> str:
    """A value with its standard deviation over seeds or, except for wall time, its least and most."""

    def shown(value: Any) -> str:
        # 49,400 and not 4.94e+04
        return f"{float(format(value, spec)):,.10g}" if spec.endswith("g") else format(value, spec)

    if (value := row.get(field)) is None:
        return "not finite" if f"{field}_spread" in row else "-"
    if (deviation := row.get(f"{field}_spread")) is not None:
        return f"{shown(value)} +- {shown(deviation)}"
    if f"{field}_least" in row and "wall" not in field:
        return f"{shown(value)} ({shown(row[f'{field}_least'])} to {shown(row[f'{field}_most'])})"
    return shown(value)


class Report(NamedTuple):
    """rows: what was measured, by name. ratios: rows of comparisons. notes: lines below both tables."""

    rows: Mapping[str, Row]
    ratios: Mapping[str, Row] = {}
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Both tables in Markdown, and the notes."""
        return "\n\n".join([*(table(rows) for rows in (self.rows, self.ratios) if rows), *self.notes])
