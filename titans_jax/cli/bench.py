"""`titans-jax bench`: comparisons of short trainings, and measurements of speed, memory and compile time."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from titans_jax import config, files, plots, results, training
from titans_jax.bench import (
    compiling,
    decode,
    formal,
    interleave,
    length_scaling,
    memory,
    optimizers,
    rules,
    scan_depth,
    steps,
    vs_titans_pytorch,
)
from titans_jax.bench.report import Report, Rows, machine
from titans_jax.cli.options import first_line, names, positive, positives, rates, stopped
from titans_jax.optim import OPTIMIZERS
from titans_jax.results import Row

NOT_SETTINGS = {"rounds", "json", "output_dir", "debug", "run", "kind", "measure", "changes"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each benchmark."""
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="KIND")

    def training_kind(measure: Callable[..., Any], config: str = "tiny", steps: int = 200) -> Callable[..., Any]:
        kind = _kind(kinds, measure, trainings, changes=[])
        base = "config to train; --section.field value changes a field (default %(default)s)"
        kind("--config", default=config, help=base)
        kind("--steps", type=positive, default=steps, help="steps of each training (default %(default)s)")
        return kind

    def timing_kind(measure: Callable[..., Any], rounds: int = 5) -> Callable[..., Any]:
        kind = _kind(kinds, measure, timings)
        kind("--rounds", type=positive, default=rounds, help="samples of each measurement (default %(default)s)")
        return kind

    kind = training_kind(bench_rules)
    which = "rules, or config:NAME for a config (default: all rules and the configs hope, tnt, atlas)"
    kind("--rules", type=names, metavar="A,B", help=which)
    kind = training_kind(bench_optimizers)
    which = f"some of {', '.join(OPTIMIZERS)} (default %(default)s)"
    kind("--optimizers", type=names, default="adamw,muon,m3", metavar="A,B", help=which)
    kind("--rates", type=rates, default="1e-3,3e-3,1e-2,3e-2", help="learning rates to try (default %(default)s)")
    kind("--seeds", type=positive, default=3, help="seeds at the best rate (default %(default)s)")
    kind = training_kind(bench_formal, "formal", 500)
    models = list(formal.FORMAL_MODELS)
    kind("--models", type=names, default=models, metavar="A,B", help=f"some of {', '.join(models)} (default: all)")
    kind("--languages", type=names, default="parity,even", help="tasks (default %(default)s)")
    kind("--seeds", type=positive, default=3, help="seeds of each training (default %(default)s)")

    kind = timing_kind(bench_memory)
    kind("--rules", type=names, default=["titans"], metavar="A,B", help="presets (default titans)")
    shapes = "heads x head size (default %(default)s)"
    kind("--shapes", type=names, default="2x128,4x64,8x32,16x16", metavar="HxD,HxD", help=shapes)
    engines = "some of exact, delta, chunked, recurrent (default: the one that the library chooses)"
    kind("--engines", type=names, metavar="A,B", help=engines)
    kind("--length", type=positive, default=1024, help="tokens of the sequence (default %(default)s)")
    kind = timing_kind(bench_peers)
    python = "Python interpreter with titans-pytorch; it needs no jax (default: this one)"
    kind("--python", default=sys.executable, metavar="PATH", help=python)
    kind("--batch", type=positive, default=1, help="sequences of a batch (default %(default)s)")
    kind = timing_kind(bench_model)
    blocks = "some of lmm, mac, mag, mal, for every other layer of the model (default mac)"
    kind("--blocks", type=names, default="mac", metavar="A,B", help=blocks)
    kind("--length", type=positive, default=1024, help="tokens of a sequence (default %(default)s)")
    kind("--batch", type=positive, default=1, help="sequences of a batch (default %(default)s)")
    kind = timing_kind(bench_decode)
    kind("--contexts", **_numbers(decode.CONTEXTS, "tokens read before"))
    read = "read each context, a minute for 64K tokens; without it, only the state's counters are set"
    kind("--read", action="store_true", help=read)
    timing_kind(bench_streams)("--sequences", **_numbers(decode.SEQUENCES, "sequences at once"))
    kind = timing_kind(bench_growth, rounds=3)
    kind("--lengths", **_numbers(length_scaling.LENGTHS, "tokens; 1048576 needs 16 GB of memory"))
    timing_kind(bench_compile, rounds=3)("--layers", **_numbers(compiling.LAYERS, "layers of tiny"))
    kind = timing_kind(bench_tnt, rounds=3)
    kind("--length", type=positive, default=32768, help="tokens of the sequence (default %(default)s)")


def _kind(kinds: Any, measure: Callable[..., Any], run: Callable[..., Any], **defaults: Any) -> Callable[..., Any]:
    """Add a parser named after `measure` with the options that all kinds share; return its add_argument."""
    name = measure.__name__.removeprefix("bench_")
    parser = kinds.add_parser(name, help=first_line(measure), description=measure.__doc__)
    folder = Path("outputs", measure.__name__)
    parser.add_argument("--output-dir", type=Path, default=folder, help="output folder (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements to FILE")
    parser.set_defaults(kind=run, measure=measure, **defaults)
    add: Callable[..., Any] = parser.add_argument
    return add


def _numbers(default: tuple[int, ...], what: str) -> dict[str, Any]:
    """The arguments of add_argument for an option of `positives`."""
    text = ",".join(map(str, default))
    return {"type": positives, "default": text, "metavar": "N,N", "help": f"{what} (default %(default)s)"}


def run(options: argparse.Namespace) -> None:
    """Compare rules, optimizers or models by short trainings, or measure speed, memory and compile time."""
    options.kind(options)


def trainings(options: argparse.Namespace) -> None:
    """Run a benchmark of trainings; finished rows are kept on disk."""
    base = config.override(config.load(options.config), options.changes, prog="titans-jax bench")
    base = replace(base, name="", output_dir="", train=replace(base.train, steps=options.steps))
    folder: Path = options.output_dir
    rows = Rows(folder, {"experiment": config.to_json(base)})
    with training.stopping(stopped(folder)), training.memory_advice():
        table, result = options.measure(options, base, rows)
    if options.json:
        rows.write(options.json)
    _finish(folder, table, {"steps": options.steps} | result, ["rows.json"])


def timings(options: argparse.Namespace) -> None:
    """Run a benchmark in rounds; its samples are kept on disk until it is complete."""
    folder: Path = options.output_dir
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    kind = options.measure.__name__.removeprefix("bench_")
    rows = Rows(folder, interleave.settings(kind, **chosen))
    with training.stopping(stopped(folder)):
        report: Report = options.measure(options, rows)
    found = {
        "settings": rows.settings,
        "machine": machine(),
        "found": report.rows,
        "ratios": report.ratios,
        "samples": rows.rows,
    }
    for path in filter(None, (folder / f"{kind}.json", options.json)):
        files.write_json(path, found)
    drawn = []
    if plots.available():
        draw = {"bars": plots.speed_bars, "lines": plots.speed_lines}[report.picture]
        draw(report.rows, folder / "speed.png")
        drawn.append("speed.png")
    both = {**report.rows, **report.ratios}
    flat = {f"{name} {field}": value for name, row in both.items() for field, value in row.items()}
    flat = {name: value for name, value in flat.items() if not isinstance(value, str)}
    _finish(folder, report.table(), flat, [f"{kind}.json", *drawn])
    rows.path.unlink()  # the files above have all samples; the same command measures again


def _finish(folder: Path, table: str, result: Row, written: list[str]) -> None:
    files.write(folder / "table.md", table + "\n")
    results.write_result(folder, result)
    print(f"{table}\n\nwritten: {folder}/: {', '.join([*written, 'table.md', 'result.json'])}")


def bench_rules(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> tuple[str, Row]:
    """Train every memory rule on the same text: loss, speed and state size."""
    chosen = options.rules or rules.default_rules()
    table = rules.compare_rules(base, chosen, options.changes, rows)
    return table, {"rules": len(chosen)} | {f"fall_{name}": rows.rows[name].get("fall") for name in chosen}


def bench_optimizers(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> tuple[str, Row]:
    """Tune each optimizer over the same learning rates; compare losses over seeds and the cost of a step."""
    table, found = optimizers.compare_optimizers(base, options.optimizers, options.rates, options.seeds, rows)
    fields = ("rate", "loss", "loss_spread", "step_cost", "update_cost")
    return table, {f"{name}_{field}": row[field] for name, row in found.items() for field in fields}


def bench_formal(options: argparse.Namespace, base: config.Experiment, rows: Rows) -> tuple[str, Row]:
    """Train models on formal languages at one length; test them at twice the length."""
    table, found = formal.compare_formal(base, options.models, options.languages, options.seeds, rows)
    fields = ("within", "beyond", "beyond_spread")
    return table, {f"{name} {field}": row[field] for name, row in found.items() for field in fields}


def bench_memory(options: argparse.Namespace, rows: Rows) -> Report:
    """Time the memory alone, forward and backward, relative to this machine's matrix products."""
    shapes = [memory.Shape.of(text) for text in options.shapes]
    subjects = memory.subjects(options.rules, shapes, options.engines, options.length)
    return interleave.run(subjects, options.rounds, rows, what="bench memory")


def bench_peers(options: argparse.Namespace, rows: Rows) -> Report:
    """Time memory, training step and next token against titans-pytorch, each in its own process."""
    return vs_titans_pytorch.compare(options.python, options.batch, options.rounds, rows)


def bench_growth(options: argparse.Namespace, rows: Rows) -> Report:
    """Measure the bytes and the time of the memory for growing lengths, in training and as a stream."""
    return length_scaling.measure(options.lengths, options.rounds, rows)


def bench_model(options: argparse.Namespace, rows: Rows) -> Report:
    """Time training steps with and without memories, and the input pipeline."""
    return steps.measure(options.blocks, options.length, options.batch, options.rounds, rows)


def bench_decode(options: argparse.Namespace, rows: Rows) -> Report:
    """Time the next token of one sequence after contexts of several lengths."""
    return decode.by_context(options.contexts, options.read, options.rounds, rows)


def bench_streams(options: argparse.Namespace, rows: Rows) -> Report:
    """Time the next token of many sequences at once."""
    return decode.at_once(options.sequences, options.rounds, rows)


def bench_compile(options: argparse.Namespace, rows: Rows) -> Report:
    """Time tracing, lowering and compiling of a training step, by number of layers, and of the memory alone."""
    return compiling.measure(options.layers, options.rounds, rows)


def bench_tnt(options: argparse.Namespace, rows: Rows) -> Report:
    """Count the sequential steps of TNT and Titans, and time the training of both."""
    return scan_depth.measure(options.length, options.rounds, rows)
