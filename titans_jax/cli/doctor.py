"""`titans-jax doctor`: whether an installation works, and what a report of a fault needs."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import __version__, data, files
from titans_jax.checkpoint import Checkpoints
from titans_jax.cli.options import path
from titans_jax.memory import Gates, miras, presets
from titans_jax.waiting import waiting

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
EXTRAS = {"plot": "matplotlib", "hf": "datasets", "eval": "lm_eval", "notebooks": "jupytext", "tpu": "libtpu"}
"""A module that each extra installs."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the folder to check, and the form of the report."""
    folder = Path("outputs")
    where = "output folder to check (default %(default)s)"
    parser.add_argument("--output-dir", dest="folder", type=path, default=folder, metavar="DIR", help=where)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the report as JSON, for programs")


def run(options: argparse.Namespace) -> None:
    """Check this installation: versions, devices, folders, a memory, a checkpoint. A fault's report needs this."""
    checks = {
        "titans_jax": lambda: f"{__version__} in {Path(files.__file__).parent}",
        "python": lambda: f"{platform.python_version()} in {sys.prefix}",
        "machine": lambda: f"{platform.platform()}, {os.cpu_count()} cores",
        "packages": lambda: ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
        "extras": _extras,
        "settings": lambda: ", ".join(f"{k}={v}" for k, v in os.environ.items() if k[:4] in ("JAX_", "XLA_")) or "none",
        "devices": lambda: ", ".join(f"{device.platform} {device.device_kind}" for device in jax.devices()),
        "memory": _memory,
        "corpus": lambda: f"moby-dick: {len(data.load_documents('moby-dick'))} documents",
        "cache folder": lambda: _folder(data.cache_folder(None)),
        "output folder": lambda: _folder(options.folder),
        "checkpoint": _checkpoint,
    }
    rows = {}
    for name, check in checks.items():
        with waiting(name):
            try:
                rows[name] = {"ok": True, "found": check()}
            except Exception as error:  # whatever is wrong is what is reported
                rows[name] = {"ok": False, "found": f"{type(error).__name__}: {error}"}
    lines = (f"{'ok' if row['ok'] else 'FAIL':<5} {name:<14} {row['found']}" for name, row in rows.items())
    print(json.dumps(rows, indent=2) if options.as_json else "\n".join(lines), flush=True)
    if failed := [name for name, row in rows.items() if not row["ok"]]:
        raise ValueError(f"of {len(rows)} checks {len(failed)} failed: {', '.join(failed)}")


def _extras() -> str:
    there = {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()}
    return ", ".join(f"{extra} {'installed' if found else 'not installed'}" for extra, found in there.items())


def _memory() -> str:
    """Compile a memory and write with it; both of its implementations must read the same."""
    rule, x = presets.deltanet(8), jnp.ones((6, 8)) / 3
    gates, reads = Gates(jnp.full(6, 0.1), jnp.zeros(6), jnp.ones(6)), []
    for name in ("exact", "recurrent"):
        memory = miras(rule, chunk=3, implementation=name)
        state = memory.init(rule.architecture.init(jax.random.key(0)))
        reads.append(jax.jit(memory.update)(state, x, x, x, gates)[0])
    np.testing.assert_allclose(reads[0], reads[1], atol=1e-5, err_msg="two implementations differ")
    return "compiles, and two implementations agree"


def _folder(folder: Path) -> str:
    files.check_folder(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{folder.absolute()}: can be written to, {shutil.disk_usage(there).free / 1e9:.1f} GB free"


def _checkpoint() -> str:
    with tempfile.TemporaryDirectory() as folder:
        saved = {"params": {"w": jnp.arange(6.0)}}
        Checkpoints(Path(folder)).save(1, saved)
        found, _, _ = Checkpoints(Path(folder)).restore(saved)
    np.testing.assert_array_equal(found["params"]["w"], saved["params"]["w"])
    return "saved and restored"
