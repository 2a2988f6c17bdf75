"""Results of commands: result.json, and tables in Markdown."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from titans_jax import files
from titans_jax.files import Target
from titans_jax.metrics import number

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]
"""A title, and a function from a row to the cell's text."""


def write_result(output_dir: Target, values: Mapping[str, Any]) -> Path:
    """Write `output_dir/result.json` and return its path. Values: finite numbers, 0-d arrays, strings, bools, None.

    Raises ValueError for any other value.
    """
    flat: Row = {}
    for name, value in values.items():
        if value is None or isinstance(value, str | bool):
            flat[name] = value
        elif math.isfinite(value := number(name, value)):
            flat[name] = value
        else:
            raise ValueError(f"result {name}={value} is not finite")
    path = Path(output_dir) / "result.json"
    files.write_json(path, flat)
    return path


def lines(values: Mapping[str, Any], width: int = 14) -> str:
    """Values to read, a line each behind their names, which take up `width` letters."""
    shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in values.items()}
    return "\n".join(f"{name:<{width}} {value}" for name, value in shown.items())


def markdown(columns: Sequence[Column], rows: Mapping[str, Row], first: str = "name") -> str:
    """A Markdown table; `first` is the title of the column of names.

    >>> print(markdown([("loss", lambda row: f"{row['loss']:.1f}")], {"titans": {"loss": 2.0}}, "rule"))
    | rule | loss |
    | --- | --- |
    | titans | 2.0 |
    """
    cells = [[first, *(title for title, _ in columns)], ["---"] * (1 + len(columns))]
    cells += [[name, *(cell(row) for _, cell in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
