"""Rows of measurements: on disk, so that an interrupted benchmark resumes, and as tables."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from titans_jax import __version__, files
from titans_jax.config import changes
from titans_jax.results import Column, Row, markdown


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

    def write(self, path: Path) -> None:
        """Write settings, machine and rows as JSON."""
        files.write_json(path, {"settings": self.settings, "machine": machine(), "rows": self.rows})


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


HEADS = {
    "times_cpu": ("CPU-seconds, first over second (least to most)", ".3g"),
    "times_wall": ("wall time", ".3g"),
    "cpu_ms": ("CPU-ms of 1,000 tokens (least to most)", ".4g"),
    "wall_ms": ("wall ms of 1,000 tokens", ".4g"),
    "cpu_s": ("CPU-s (least to most)", ".3g"),
    "wall_s": ("wall s", ".3g"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "flops_per_token": ("FLOPs a token", ",.0f"),
    "gflops_per_cpu_s": ("GFLOP/CPU-s", ".1f"),
    "share": ("share of the matmul rate (least to most)", ".1%"),
}
"""The columns of a table in order: the title and the format of each field."""


class Report(NamedTuple):
    """rows: what was measured, by name. ratios: rows of comparisons. notes: lines below both tables.

    heads: columns after those of HEADS, in the same form. picture: bars, or lines over the rows' `tokens`.
    """

    rows: Mapping[str, Row]
    ratios: Mapping[str, Row] = {}
    notes: tuple[str, ...] = ()
    heads: Mapping[str, tuple[str, str]] = {}
    picture: str = "bars"

    def table(self) -> str:
        """Markdown with the columns that a row has a value for.

        >>> print(Report({"a": {"cpu_ms": 2.0, "cpu_ms_least": 1.0, "cpu_ms_most": 3.0}}).table())
        | what | CPU-ms of 1,000 tokens (least to most) |
        | --- | --- |
        | a | 2 (1 to 3) |
        """
        return "\n\n".join([*(self._table(rows) for rows in (self.rows, self.ratios) if rows), *self.notes])

    def _table(self, rows: Mapping[str, Row]) -> str:
        heads = {**HEADS, **self.heads}.items()
        columns = [_column(*head, field) for field, head in heads if any(field in row for row in rows.values())]
        return markdown(columns, rows, "what")


def _column(title: str, spec: str, field: str) -> Column:
    """A value and, except for wall time, its least and most."""

    def shown(value: float) -> str:
        # 49,400 and not 4.94e+04
        return f"{float(format(value, spec)):,.10g}" if spec.endswith("g") else format(value, spec)

    def cell(row: Row) -> str:
        if row.get(field) is None:
            return "-"
        around = [shown(row[end]) for end in (f"{field}_least", f"{field}_most") if end in row]
        return shown(row[field]) + (f" ({' to '.join(around)})" if around and "wall" not in field else "")

    return title, cell
