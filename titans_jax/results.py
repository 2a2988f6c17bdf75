"""What a command leaves behind: result.json, and tables in markdown."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from titans_jax import files
from titans_jax.metrics import number

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]
"""A title, and the text of a row's cell."""


def write_result(output_dir: str | os.PathLike[str], values: Mapping[str, Any]) -> Path:
    """Writes `output_dir/result.json` atomically and returns its path; 0-d arrays become numbers.

    Raises ValueError for a value that is not finite, or not a number, string, bool or None.
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


def markdown(columns: Sequence[Column], rows: Mapping[str, Row], first: str = "name") -> str:
    """A table with a line for each row and a cell for each column.

    >>> print(markdown([("loss", lambda row: f"{row['loss']:.1f}")], {"titans": {"loss": 2.0}}, "rule"))
    | rule | loss |
    | --- | --- |
    | titans | 2.0 |
    """
    lines = [[first, *(title for title, _ in columns)], ["---"] * (1 + len(columns))]
    lines += [[name, *(cell(row) for _, cell in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
