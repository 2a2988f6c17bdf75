"""`titans-jax bench`: comparisons of short trainings, and measurements of speed and memory."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titans_jax import config, files, plots, results, training
from titans_jax.bench import comparisons, interleave, memory, recall, steps
from titans_jax.bench.interleave import MATMUL, Plan
from titans_jax.bench.report import Report, Rows
from titans_jax.cli.options import comparison, first_line, names, positive, positives, rates, stopped
from titans_jax.optim import OPTIMIZERS
from titans_jax.waiting import waiting

NOT_SETTINGS = {"rounds", "json", "output_dir", "debug", "run", "kind", "measure", "changes", "flags", "no_cache"}
LENGTH, BATCH = "tokens of a sequence", "sequences of a batch"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each benchmark."""
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="KIND")

    kind = _kind(kinds, bench_rules, trainings, config="text", steps=200)
    kind("--rules", None, names, "rules, or config:NAME for a config (default: all, and the configs hope, tnt, atlas)")
    kind = _kind(kinds, bench_optimizers, trainings, config="text", steps=200)
    kind("--optimizers", "adamw,muon,m3", names, f"some of {', '.join(OPTIMIZERS)}")
    kind("--rates", "1e-3,3e-3,1e-2,3e-2", rates, "learning rates to try")
    kind("--seeds", 3, positive, "seeds at the best rate")
    kind = _kind(kinds, bench_recall, trainings, config="recall", steps=150)
    kind("--models", ",".join(recall.MODELS), names, "models: BLOCK:RULE, or a block without a memory")
    kind("--seeds", 10, positive, "seeds of each training")
    kind = _kind(kinds, bench_formal, trainings, config="formal", steps=500)
    models = ",".join(comparisons.FORMAL_MODELS)
    kind("--models", models, names, "models")
    kind("--languages", "parity,even", names, "tasks")
    kind("--seeds", 3, positive, "seeds of each training")

    kind = _kind(kinds, bench_memory, timings)
    kind("--rules", "titans", names, "presets, or tnt: Titans with a local memory")
    kind("--shapes", "2x128,4x64,8x32,16x16", shapes, "heads x head size")
    kind("--lengths", "1024", positives, f"{LENGTH}; 1048576 needs 16 GB of memory")
    kind("--passes", "forward,training,training-bfloat16", names, f"some of {', '.join(memory.PASSES)}")
    kind("--chunk", 64, positive, "tokens of a chunk, of tnt's local memory")
    kind("--alone", None, None, "measure each in a process of its own, and its bytes")
    kind("--cycles", None, None, "also estimate cycles by the TPU's compiler (extra tpu)")
    kind = _kind(kinds, bench_model, timings)
    kind("--blocks", "mac", names, "some of lmm, mac, mag, mal, for every other layer of the model")
    kind("--length", 1024, positive, LENGTH)
    kind("--batch", 1, positive, BATCH)
    kind = _kind(kinds, bench_decode, timings)
    kind("--contexts", "256,4096,65536", positives, "tokens that are read before, a minute for 65536")
    kind("--sequences", "1", positives, "sequences at once")
    kind = _kind(kinds, bench_peers, timings)
    kind("--python", sys.executable, str, "Python interpreter with titans-pytorch; it needs no jax")
    kind("--batch", 1, positive, BATCH)


def _kind(kinds: Any, measure: Callable[..., Any], run: Callable[..., Any], **base: Any) -> Callable[..., Any]:
    """Add a parser named after `measure` with the options that its kind shares; return what adds another.

    base: of trainings, the defaults of --config and --steps.
    """
    name = measure.__name__.removeprefix("bench_")
    parser = kinds.add_parser(name, help=first_line(measure), description=measure.__doc__)

    def add(flag: str, default: Any, kind: Callable[[str], Any] | None, text: str) -> None:
        """An option with a value of this kind; None is a switch."""
        if kind is None:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            shown = text if default is None else f"{text} (default %(default)s)"
            parser.add_argument(flag, type=kind, default=default, metavar="VALUE", help=shown)

    add("--output-dir", Path("outputs", measure.__name__), Path, "output folder")
    add("--json", None, Path, "also write all measurements to this file")
    parser.set_defaults(kind=run, measure=measure)
    if base:
        parser.set_defaults(changes=[])
        add("--config", base["config"], str, "config to train; --section.field value changes a field")
        add("--steps", base["steps"], positive, "steps of each training")
    else:
        add("--rounds", 5, positive, "samples of each measurement")
    return add


def shapes(text: str) -> list[tuple[int, int]]:
    """Argument type: shapes separated by commas, such as 4x64 for 4 heads of 64.

    >>> shapes("4x64,2x128")
    [(4, 64), (2, 128)]
    """
    try:
        return [(positive(heads), positive(size)) for heads, size in (one.split("x") for one in names(text))]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not heads x size, such as 4x64") from None


def run(options: argparse.Namespace) -> None:
    """Compare rules, optimizers or models by short trainings, or measure speed and memory."""
    options.kind(options)


def trainings(options: argparse.Namespace) -> None:
    """Run a benchmark of trainings; finished rows are kept on disk."""
    base = comparison(options, options.changes, "titans-jax bench")
    rows = Rows(options.output_dir, {"experiment": config.to_json(base)})
    with training.stopping(stopped(options.output_dir)), training.memory_advice():
        report = options.measure(options, base, rows)
    _finish(options, report, rows)


def timings(options: argparse.Namespace) -> None:
    """Run a benchmark in rounds; its samples are kept on disk until it is complete."""
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    with waiting("tracing what is measured"):
        plan = options.measure(options)
    kind = options.measure.__name__.removeprefix("bench_")
    rows = Rows(options.output_dir, interleave.settings(kind, **chosen))
    with training.stopping(stopped(options.output_dir)):
        report = interleave.run(plan, rows, options.rounds)
    drawn = {name: row for name, row in report.rows.items() if name != MATMUL}
    if plots.available():
        draw = plots.speed_lines if len(chosen.get("lengths", ())) > 1 else plots.speed_bars
        draw(drawn, options.output_dir / "speed.png")
    _finish(options, report, rows)
    rows.path.unlink()  # measurements.json has all samples; the same command measures again


def _finish(options: argparse.Namespace, report: Report, rows: Rows) -> None:
    """Write the table, result.json with every number of it, and measurements.json with all that was measured."""
    folder: Path = options.output_dir
    found = {**report.rows, **report.ratios}
    for path in filter(None, (folder / "measurements.json", options.json)):
        rows.write(path, found=report.rows, ratios=report.ratios)
    flat = {f"{name} {field}": value for name, row in found.items() for field, value in row.items()}
    results.write_result(folder, {name: value for name, value in flat.items() if isinstance(value, int | float | None)})
    files.write(folder / "table.md", report.table() + "\n")
    print(f"{report.table()}\n\nwritten: {folder}/: measurements.json, table.md, result.json")


def bench_rules(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> Report:
    """Train every memory rule on the same text: loss, speed and state size."""
    return comparisons.rules(base, options.rules, options.changes, rows)


def bench_optimizers(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> Report:
    """Tune each optimizer over the same learning rates; compare losses over seeds and the cost of a step."""
    return comparisons.optimizers(base, options.optimizers, options.rates, options.seeds, rows)


def bench_recall(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> Report:
    """Train models to recall facts from beyond attention's window: steps to learn and accuracy over seeds."""
    return recall.recall(base, options.models, options.seeds, rows)


def bench_formal(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> Report:
    """Train models on formal languages at one length; test them at twice the length."""
    return comparisons.formal(base, options.models, options.languages, options.seeds, rows)


def bench_memory(options: argparse.Namespace) -> Plan:
    """Time the memory alone by rule, shape, length and pass; count its FLOPs, scans and bytes."""
    chosen = ("rules", "shapes", "lengths", "passes", "chunk", "alone", "cycles")
    return memory.plan(**{name: getattr(options, name) for name in chosen})


def bench_model(options: argparse.Namespace) -> Plan:
    """Time training steps with and without memories, and the input pipeline."""
    return steps.model(options.blocks, options.length, options.batch)


def bench_decode(options: argparse.Namespace) -> Plan:
    """Time the next token after contexts of several lengths, and of many sequences at once."""
    return steps.decode(options.contexts, options.sequences)


def bench_peers(options: argparse.Namespace) -> Plan:
    """Time memory, training step and next token against titans-pytorch, each in its own process."""
    return steps.peers(options.python, options.batch)
