"""`titans-jax bench`: trainings side by side, and the clock."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from titans_jax import config, files, results, training
from titans_jax.cli import speed
from titans_jax.cli.options import first_line, names, positive, rates
from titans_jax.optim import OPTIMIZERS
from titans_jax.training import bench


def configure(parser: argparse.ArgumentParser) -> None:
    """Which benchmark, and of what."""
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="KIND")
    rules = kinds.add_parser("rules", help=first_line(bench_rules), description=bench_rules.__doc__)
    which = "rules, or config:NAME for a config (default: every rule, and hope, tnt, atlas where they are configs)"
    rules.add_argument("--rules", type=names, metavar="A,B", help=which)
    kind = kinds.add_parser("optimizers", help=first_line(bench_optimizers), description=bench_optimizers.__doc__)
    known = f"of {', '.join(OPTIMIZERS)} (default %(default)s)"
    kind.add_argument("--optimizers", type=names, default="adamw,muon,m3", metavar="A,B", help=known)
    kind.add_argument("--rates", type=rates, default="1e-3,3e-3,1e-2,3e-2", help="the grid (default %(default)s)")
    kind.add_argument("--seeds", type=positive, default=3, help="seeds at the best rate (default %(default)s)")
    formal = kinds.add_parser("formal", help=first_line(bench_formal), description=bench_formal.__doc__)
    models = f"of {', '.join(bench.FORMAL_MODELS)} (default: all)"
    formal.add_argument("--models", type=names, default=list(bench.FORMAL_MODELS), metavar="A,B", help=models)
    formal.add_argument("--languages", type=names, default="parity,even", help="tasks (default %(default)s)")
    formal.add_argument("--seeds", type=positive, default=3, help="of each training (default %(default)s)")
    every = (
        (rules, bench_rules, "tiny", 200),
        (kind, bench_optimizers, "tiny", 200),
        (formal, bench_formal, "formal", 500),
    )
    for parser, measure, config_, steps in every:
        base = "what is trained, changed by --section.field value (default %(default)s)"
        parser.add_argument("--config", default=config_, help=base)
        parser.add_argument("--steps", type=positive, default=steps, help="of each training (default %(default)s)")
        folder = Path("outputs", measure.__name__)
        parser.add_argument("--output-dir", type=Path, default=folder, help="where rows are kept (default %(default)s)")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
        parser.set_defaults(kind=trainings, measure=measure, changes=[])
    speed.configure(kinds)


def run(options: argparse.Namespace) -> None:
    """Compare rules, optimizers, models by short trainings; or measure speed, memory and compile times."""
    options.kind(options)


def trainings(options: argparse.Namespace) -> None:
    """Train side by side; finished rows are kept."""
    base = config.override(config.load(options.config), options.changes, prog="titans-jax bench")
    base = replace(base, name="", output_dir="", train=replace(base.train, steps=options.steps))
    folder: Path = options.output_dir
    rows = bench.Rows(folder, {"experiment": config.to_json(base)})
    goes_on = f"stopped; {folder} keeps the finished rows, and the same command goes on"
    with training.stopping(goes_on), training.memory_advice():
        table, result = options.measure(options, base, rows)
    files.write(folder / "table.md", table + "\n")
    if options.json:
        rows.write(options.json)
    results.write_result(folder, {"steps": options.steps} | result)
    print(f"{table}\n\nwritten: {folder}/: rows.json, table.md, result.json")


def bench_rules(options: argparse.Namespace, base: config.Experiment, rows: bench.Rows) -> tuple[str, dict[str, Any]]:
    """Train every rule of memory on the same text: its loss, its speed, its state."""
    names = options.rules or bench.default_rules()
    table = bench.compare_rules(base, names, options.changes, rows)
    falls = {name: rows.rows[name].get("fall") for name in names}
    return table, {"rules": len(names)} | {f"fall_{name}": fall for name, fall in falls.items()}


def bench_optimizers(
    options: argparse.Namespace, base: config.Experiment, rows: bench.Rows
) -> tuple[str, dict[str, Any]]:
    """Tune each optimizer over the same rates, and compare their losses over seeds and what their steps cost."""
    table, found = bench.compare_optimizers(base, options.optimizers, options.rates, options.seeds, rows)
    fields = ("rate", "loss", "spread", "step_cost", "update_cost")
    return table, {f"{name}_{field}": row[field] for name, row in found.items() for field in fields}


def bench_formal(options: argparse.Namespace, base: config.Experiment, rows: bench.Rows) -> tuple[str, dict[str, Any]]:
    """Train models on formal languages at one length, and test their labels at twice the length."""
    table, found = bench.compare_formal(base, options.models, options.languages, options.seeds, rows)
    fields = ("within", "beyond", "beyond_spread")
    return table, {f"{name} {field}": row[field] for name, row in found.items() for field in fields}
