"""The kinds of `titans-jax bench` that take the clock: how fast, in how much memory, how long a compile takes."""

import argparse
import sys
from pathlib import Path
from typing import Any

from titans_jax import files, plots, results, training
from titans_jax.cli.options import first_line, names, positive
from titans_jax.speed import compiling, growth, memory, peers, rounds, sequential, steps, writing
from titans_jax.speed.table import Report
from titans_jax.training.bench import Rows, machine

NOT_SETTINGS = {"rounds", "json", "output_dir", "debug", "run", "kind", "measure", "changes"}


def configure(kinds: Any) -> None:
    """A parser for each kind, under `kinds`."""
    parser = kinds.add_parser("memory", help=first_line(bench_memory), description=bench_memory.__doc__)
    parser.add_argument("--rules", type=names, default=["titans"], metavar="A,B", help="presets (default titans)")
    shapes = "heads x size of each (default 2x128,4x64,8x32,16x16)"
    parser.add_argument("--shapes", type=names, default="2x128,4x64,8x32,16x16", metavar="HxD,HxD", help=shapes)
    engines = "of exact, delta, chunked, recurrent (default: the one that the library picks)"
    parser.add_argument("--engines", type=names, metavar="A,B", help=engines)
    parser.add_argument("--length", type=positive, default=1024, help="tokens of the sequence (default %(default)s)")
    _shared(parser, bench_memory)
    parser = kinds.add_parser("peers", help=first_line(bench_peers), description=bench_peers.__doc__)
    python = "the interpreter that has titans-pytorch, which need not have jax (default: this one)"
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help=python)
    parser.add_argument("--batch", type=positive, default=1, help="sequences at once (default %(default)s)")
    _shared(parser, bench_peers)
    parser = kinds.add_parser("model", help=first_line(bench_model), description=bench_model.__doc__)
    blocks = "of lmm, mac, mag, mal: every other layer of the model (default mac)"
    parser.add_argument("--blocks", type=names, default="mac", metavar="A,B", help=blocks)
    parser.add_argument("--length", type=positive, default=1024, help="tokens of a sequence (default %(default)s)")
    parser.add_argument("--batch", type=positive, default=1, help="sequences of a step (default %(default)s)")
    _shared(parser, bench_model)
    parser = kinds.add_parser("decode", help=first_line(bench_decode), description=bench_decode.__doc__)
    contexts = "tokens before (default %(default)s)"
    default = ",".join(map(str, writing.CONTEXTS))
    parser.add_argument("--contexts", type=numbers, default=default, metavar="N,N", help=contexts)
    read = "really read each context, which takes a minute for 64K; without, the state's counters are set"
    parser.add_argument("--read", action="store_true", help=read)
    _shared(parser, bench_decode)
    parser = kinds.add_parser("streams", help=first_line(bench_streams), description=bench_streams.__doc__)
    default = ",".join(map(str, writing.SEQUENCES))
    parser.add_argument("--sequences", type=numbers, default=default, metavar="N,N", help="(default %(default)s)")
    _shared(parser, bench_streams)
    parser = kinds.add_parser("growth", help=first_line(bench_growth), description=bench_growth.__doc__)
    lengths = "tokens (default %(default)s); 1048576 needs 16 GB of memory"
    default = ",".join(map(str, growth.LENGTHS))
    parser.add_argument("--lengths", type=numbers, default=default, metavar="N,N", help=lengths)
    _shared(parser, bench_growth, times=3)
    parser = kinds.add_parser("compile", help=first_line(bench_compile), description=bench_compile.__doc__)
    default = ",".join(map(str, compiling.LAYERS))
    parser.add_argument("--layers", type=numbers, default=default, metavar="N,N", help="of tiny (default %(default)s)")
    _shared(parser, bench_compile, times=3)
    parser = kinds.add_parser("tnt", help=first_line(bench_tnt), description=bench_tnt.__doc__)
    parser.add_argument("--length", type=positive, default=32768, help="tokens of the sequence (default %(default)s)")
    _shared(parser, bench_tnt, times=3)


def _shared(parser: argparse.ArgumentParser, measure: Any, *, times: int = 5) -> None:
    parser.add_argument("--rounds", type=positive, default=times, help="samples of each (default %(default)s)")
    folder = Path("outputs", measure.__name__)
    parser.add_argument("--output-dir", type=Path, default=folder, help="where results go (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured here too")
    parser.set_defaults(kind=run, measure=measure)


def numbers(text: str) -> list[int]:
    """Whole numbers above 0 with commas between, in order."""
    return sorted({positive(number) for number in text.split(",")})


def run(options: argparse.Namespace) -> None:
    """Measure in rounds; samples are kept until the last one is taken."""
    folder: Path = options.output_dir
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    kind = options.measure.__name__.removeprefix("bench_")
    rows = Rows(folder, rounds.settings(kind, **chosen))
    with training.stopping(f"stopped; {folder} keeps the finished samples, and the same command goes on"):
        report: Report = options.measure(options, rows)
    table = report.table()
    files.write(folder / "table.md", table + "\n")
    found = {
        "settings": rows.settings,
        "machine": machine(),
        "found": report.rows,
        "ratios": report.ratios,
        "samples": rows.rows,
    }
    written = [f"{kind}.json", "table.md", "result.json"]
    for path in filter(None, (folder / written[0], options.json)):
        files.write_json(path, found)
    if plots.available():
        draw = {"bars": plots.speed_bars, "lines": plots.speed_lines}[report.picture]
        draw(report.rows, folder / "speed.png")
        written.append("speed.png")
    both = {**report.rows, **report.ratios}
    flat = {f"{name} {field}": value for name, row in both.items() for field, value in row.items()}
    results.write_result(folder, {name: value for name, value in flat.items() if not isinstance(value, str)})
    rows.path.unlink()  # all samples are in the files above; the same command now measures anew
    print(f"{table}\n\nwritten: {folder}/: {', '.join(written)}")


def bench_memory(options: argparse.Namespace, rows: Rows) -> Report:
    """Time the memory alone, forward and with its gradient, against this machine's matrix products."""
    shapes = [memory.Shape.of(text) for text in options.shapes]
    subjects = memory.subjects(options.rules, shapes, options.engines, options.length)
    return Report(rounds.run(subjects, options.rounds, rows, what="bench memory").found())


def bench_peers(options: argparse.Namespace, rows: Rows) -> Report:
    """Time memory, training step and next token beside titans-pytorch's, each in a process of its own."""
    return peers.compare(options.python, options.batch, options.rounds, rows)


def bench_growth(options: argparse.Namespace, rows: Rows) -> Report:
    """Weigh and time the memory over longer and longer texts, in training and as a stream."""
    return growth.measure(options.lengths, options.rounds, rows)


def bench_model(options: argparse.Namespace, rows: Rows) -> Report:
    """Time training steps with memories and without, and the input pipeline beside them."""
    return steps.measure(options.blocks, options.length, options.batch, options.rounds, rows)


def bench_decode(options: argparse.Namespace, rows: Rows) -> Report:
    """Time the next token of one sequence after contexts of every length."""
    return writing.by_context(options.contexts, options.read, options.rounds, rows)


def bench_streams(options: argparse.Namespace, rows: Rows) -> Report:
    """Time the next token of many sequences at once."""
    return writing.at_once(options.sequences, options.rounds, rows)


def bench_compile(options: argparse.Namespace, rows: Rows) -> Report:
    """Time tracing, lowering and compiling of a training step of few and many layers, and of the memory alone."""
    return compiling.measure(options.layers, options.rounds, rows)


def bench_tnt(options: argparse.Namespace, rows: Rows) -> Report:
    """Count the steps that follow one another in TNT and in Titans, and time the training of both."""
    return sequential.measure(options.length, options.rounds, rows)
