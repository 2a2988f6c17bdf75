"""Rows of a table on disk: each is written when it is done, so that the same command goes on after an interruption."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from titans_jax import __version__, files
from titans_jax.config import changes
from titans_jax.results import Row


class Rows:
    """The rows in FOLDER/rows.json, by name, with the settings they were made under and the machine they came from.

    Raises ValueError where the folder holds rows of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.rows = folder / "rows.json", dict[str, Row]()
        self.settings = json.loads(json.dumps(settings))
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            held = json.loads(self.path.read_text(encoding="utf-8"))
            for path, old, new in changes(held["settings"], self.settings):
                raise ValueError(f"{folder} holds rows with {path} = {old}, not {new}; give another --output-dir")
            self.rows = held["rows"]

    def get(self, name: str, make: Callable[[], Row]) -> Row:
        """The row of this name, made and written where it is not there yet."""
        if name not in self.rows:
            self.rows[name] = make()
            self.write(self.path)
        return self.rows[name]

    def write(self, path: Path) -> None:
        """Write settings, machine and rows as JSON, in one step."""
        files.write_json(path, {"settings": self.settings, "machine": machine(), "rows": self.rows})


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    devices = jax.devices()
    return {
        "titans_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    """The processor's name, where the system says it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
