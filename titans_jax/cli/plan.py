"""`titans-jax plan`: whether a training fits a TPU slice, and what a step costs there, without a TPU."""

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from titans_jax import config, results
from titans_jax.bench import tpu
from titans_jax.bench.hlo import WIRE
from titans_jax.bench.plan import plan
from titans_jax.cli.options import names, path
from titans_jax.results import Row
from titans_jax.waiting import waiting


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = "titans-jax plan CONFIG --topology v5e:4x4 [options] [--section.field value ...]"
    parser.epilog = "--mesh divides the devices, as in train (default: the config's mesh; without one, fsdp over all)"
    parser.add_argument("config", metavar="CONFIG", help="a config's name, or a Python file with get_config()")
    chips = "the TPU slices to plan for, such as v5e:4x4,v5p:4x4x4; a column each"
    parser.add_argument("--topology", type=names, required=True, metavar="NAME,...", help=chips)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the plans as JSON, for programs")
    folder = Path("outputs/plan")
    parser.add_argument("--output-dir", type=path, default=folder, help="output folder (default %(default)s)")
    parser.set_defaults(changes=[])


def run(options: argparse.Namespace) -> None:
    """Compile a training's step for TPUs that are not here: does it fit, and what does each device compute and send?"""
    experiment = config.override(
        config.load(options.config), options.changes, prog="titans-jax plan", flags=options.flags
    )
    plans: dict[str, Row] = {}
    for topology in options.topology:
        with waiting(f"compiling for {topology}"):
            devices = tpu.devices(topology)
            mesh = experiment.mesh or f"fsdp={len(devices)}"
            plans[topology] = plan(replace(experiment, mesh=mesh), devices)
    flat = {f"{topology} {name}": value for topology, row in plans.items() for name, value in row.items()}
    written = results.write_result(options.output_dir, flat)
    print(json.dumps(plans, indent=2) if options.as_json else f"{table(plans)}\n\nwritten: {written}")


def table(plans: Mapping[str, Row]) -> str:
    """The plans as a Markdown table: a column for each topology, a row for each number."""
    columns = [(topology, functools.partial(_cell, topology)) for topology in plans]
    titles = LINES | {kind: functools.partial(_collective, kind) for kind in WIRE}
    rows = {title: {topology: show(row) for topology, row in plans.items()} for title, show in titles.items()}
    return results.markdown(columns, {title: row for title, row in rows.items() if any(row.values())}, "each device")


def _cell(topology: str, row: Row) -> str:
    return str(row[topology]) or "-"


def amount(value: float | None, unit: str) -> str:
    """A quantity with the prefix that suits its size; "" for None.

    >>> amount(15.75 * 2**30, "B"), amount(4200, "B"), amount(0.0123, "s")
    ('16.9 GB', '4.2 kB', '12.3 ms')
    """
    if value is None:
        return ""
    prefixes = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "u": 1e-6}
    prefix, size = next(((p, s) for p, s in prefixes.items() if value >= s), ("", 1.0))
    return f"{value / size:.3g} {prefix}{unit}"


def _collective(kind: str, row: Row) -> str:
    sent = amount(row.get(f"{kind}_bytes"), "B")
    return sent and f"{sent} sent, in {row[f'{kind}_count']:,}"


LINES: dict[str, Callable[[Row], str]] = {
    "fits": lambda row: "yes" if row["fits"] else f"NO: {row['reason']}",
    "devices": lambda row: f"{row['devices']} {row['device']}, mesh {row['mesh']}",
    "batch of all": lambda row: f"{row['batch']} rows of {row['sequence']:,} tokens",
    "rows that fit, about": lambda row: f"{row['rows_that_fit']:,}" if row["rows_that_fit"] else "",
    "needed": lambda row: f"{amount(row['needed_bytes'], 'B') or 'more'} of {amount(row['hbm_bytes'], 'B')}",
    "- parameters": lambda row: amount(row["parameter_bytes"], "B"),
    "- optimizer": lambda row: amount(row["optimizer_bytes"], "B"),
    "- temporaries": lambda row: amount(row["temporary_bytes"], "B"),
    "- program": lambda row: amount(row["program_bytes"], "B"),
    "parameters left whole": lambda row: row["whole"] and f"{amount(row['whole_bytes'], 'B')}: {row['whole']}",
    "matrix products": lambda row: f"{amount(row['flops'], 'FLOP')}, {amount(row['useful_flops'], 'FLOP')} useful",
    "matrix products take at least": lambda row: amount(row["matmul_seconds"], "s"),
    "links take at least": lambda row: amount(row.get("link_seconds"), "s"),
    "cycles, to rank programs": lambda row: f"{row['cycles']:.3g}" if row.get("cycles") else "",
    "MFU is at most": lambda row: f"{row['mfu_bound']:.0%}" if "mfu_bound" in row else "",
}
"""The lines of the table: what each shows of a plan, "" for nothing."""
