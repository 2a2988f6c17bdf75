"""The command line, `titans-jax train | eval | generate | bench | rules`: each a parser and what it runs."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from titans_jax import config, data, metrics, training
from titans_jax.decode import Sampling, Text, generate
from titans_jax.evaluation import RESETS, evaluate
from titans_jax.memory.table import table
from titans_jax.optim import OPTIMIZERS
from titans_jax.training import bench


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 bad input, 3 no checkpoint, 4 diverged, 75 stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:  # its options are the fields of an Experiment, which the config decides
        return training.command(arguments[1:], prog="titans-jax train")
    parser = argparse.ArgumentParser(prog="titans-jax", description="Networks whose memory learns while it reads.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a config; `titans-jax train --help` lists them")
    for name, (configure, run) in COMMANDS.items():
        command = commands.add_parser(name, help=_first_line(run), description=run.__doc__)
        configure(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run)
    options, changes = parser.parse_known_args(arguments)
    if changes and "changes" not in options:
        parser.error(f"unrecognized arguments: {' '.join(changes)}")
    options.changes = changes
    return training.guard(lambda: options.run(options), prog="titans-jax", debug=options.debug)


def _eval_options(parser: argparse.ArgumentParser) -> None:
    _checkpoint_options(parser)
    parser.add_argument("--corpus", help="what to read, as data.corpus; by default what it was trained on")
    parser.add_argument("--batch", type=_positive, help="rows read side by side; by default as in training")
    parser.add_argument("--sequence", type=_positive, help="tokens of a sequence; by default as in training")
    parser.add_argument("--limit", type=_positive, help="read at most so many batches; by default all held-out text")
    policies = "; ".join(f"{name}: {text}" for name, text in RESETS.items())
    parser.add_argument("--reset", choices=list(RESETS), default="sequence", help=f"{policies} (default sequence)")


def evaluate_checkpoint(options: argparse.Namespace) -> None:
    """Score a checkpoint on held-out text: loss, perplexity, bits per byte, accuracy."""
    experiment, model, step = training.load(options.checkpoint, options.which)
    given = {name: getattr(options, name) for name in ("corpus", "batch", "sequence") if getattr(options, name)}
    source = replace(experiment.data, **given)
    stream_, tokenizer = data.load_streams(source)[1:]
    batches = data.held_out_batches(source, limit=options.limit)
    total = len(stream_.tokens) - 1 if stream_ else 0
    if options.limit:
        total = min(total, options.limit * source.batch * source.sequence)
    with training.memory_advice(), metrics.progress(total, "eval") as bar:
        result = evaluate(model, _counted(batches, bar), tokenizer.byte_lengths, reset=options.reset)
    result |= {
        "corpus": source.corpus,
        "sequence": source.sequence,
        "checkpoint": str(options.checkpoint),
        "step": step,
    }
    folder = _output(options, "eval")
    metrics.write_result(folder, result)
    shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in result.items()}
    lines = [f"{name:<14} {value}" for name, value in shown.items()]
    (folder / "result.txt").write_text("\n".join(lines) + "\n")
    print("\n".join([*lines, f"{'written':<14} {folder}/: result.json, result.txt"]))


def _counted(batches: Iterator[dict[str, Any]], bar: metrics.Progress) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield batch
        count = int(batch["mask"].sum())
        bar.advance(count, tokens=count)


def _generate_options(parser: argparse.ArgumentParser) -> None:
    _checkpoint_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", action="append", help="what to go on from; repeatable; none begins a document")
    prompt.add_argument("--prompt-file", type=Path, help="a UTF-8 file to go on from")
    parser.add_argument("--length", type=_positive, default=256, help="tokens to write (default 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens that hold this much probability")
    parser.add_argument("--min-p", type=float, help="draw from tokens at least this many times as likely as the best")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal text (default 0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--batch", type=_positive, default=1, help="samples of each prompt (default 1)")


def generate_text(options: argparse.Namespace) -> None:
    """Go on from a prompt with a checkpoint; a single sample is shown as it is written."""
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    prompts = options.prompt or [options.prompt_file.read_text(encoding="utf-8") if options.prompt_file else ""]
    prompts = [prompt for prompt in prompts for _ in range(options.batch)]
    experiment, model, step = training.load(options.checkpoint, options.which)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    rows = [tokenizer.encode(prompt) if prompt else np.array([tokenizer.separator], np.int32) for prompt in prompts]
    texts = [Text(tokenizer.decode, options.stop) for _ in rows]
    alone = len(rows) == 1
    times: list[float] = []
    with training.memory_advice(), contextlib.ExitStack() as stack:
        bar = None if alone else stack.enter_context(metrics.progress(options.length * len(rows), "generate"))

        def heard(row: int, token: int) -> bool:
            times.append(time.perf_counter())
            piece = texts[row].add(token)
            if bar is None:
                print(piece, end="", flush=True)
            else:
                bar.advance(1, tokens=1)
            return texts[row].ended

        print(prompts[0] if alone else "", end="", flush=True)
        key = jax.random.key(options.seed)
        generate(model, rows, length=options.length, **asdict(sampling), key=key, stop=heard)
    rest = [text.finish() for text in texts]
    samples = [prompt + text.shown for prompt, text in zip(prompts, texts, strict=True)]
    print(rest[0] if alone else "\n".join(f"--- {i}\n{sample}" for i, sample in enumerate(samples)))
    folder = _output(options, "generate")
    (folder / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "samples.txt").write_text("\n\n".join(samples) + "\n", encoding="utf-8")
    # From the first token on: before it, the prompt is read and the model compiled.
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    result = {"samples": len(rows), "tokens": len(times), "tokens_per_second": rate, "seed": options.seed}
    result |= {**asdict(sampling), "checkpoint": str(options.checkpoint), "step": step}
    metrics.write_result(folder, result)


def _bench_options(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="KIND")
    rules = kinds.add_parser("rules", help=_first_line(bench_rules), description=bench_rules.__doc__)
    which = "rules, or config:NAME for a config (default: every rule, and hope, tnt, atlas where they are configs)"
    rules.add_argument("--rules", type=_names, metavar="A,B", help=which)
    kind = kinds.add_parser("optimizers", help=_first_line(bench_optimizers), description=bench_optimizers.__doc__)
    known = f"of {', '.join(OPTIMIZERS)} (default %(default)s)"
    kind.add_argument("--optimizers", type=_names, default="adamw,muon,m3", metavar="A,B", help=known)
    kind.add_argument("--rates", type=_rates, default="1e-3,3e-3,1e-2,3e-2", help="the grid (default %(default)s)")
    kind.add_argument("--seeds", type=_positive, default=3, help="seeds at the best rate (default %(default)s)")
    for parser, run in ((rules, bench_rules), (kind, bench_optimizers)):
        base = "what is trained, changed by --section.field value (default %(default)s)"
        parser.add_argument("--config", default="tiny", help=base)
        parser.add_argument("--steps", type=_positive, default=200, help="of each training (default %(default)s)")
        folder = Path("outputs", run.__name__)
        parser.add_argument("--output-dir", type=Path, default=folder, help="where rows are kept (default %(default)s)")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
        parser.set_defaults(measure=run, changes=[])


def run_benchmark(options: argparse.Namespace) -> None:
    """Compare rules of memory, or optimizers, by short trainings; finished rows are kept, and not made again."""
    base = config.override(config.load(options.config), options.changes, prog="titans-jax bench")
    base = replace(base, name="", output_dir="", train=replace(base.train, steps=options.steps))
    folder: Path = options.output_dir
    rows = bench.Rows(folder, {"experiment": config.to_json(base)})
    try:
        with training.memory_advice():
            table, result = options.measure(options, base, rows)
    except KeyboardInterrupt:
        raise training.Stopped(f"stopped; {folder} keeps the finished rows, and the same command goes on") from None
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    if options.json:
        rows.write(options.json)
    metrics.write_result(folder, {"steps": options.steps} | result)
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


def _checkpoint_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a run's output folder")
    parser.add_argument("--which", type=_which, default="best", help="best, last or a step (default best)")
    parser.add_argument("--output-dir", type=Path, help="where results go (default: a folder in the checkpoint's run)")


def _which(text: str) -> str | int:
    if text in ("best", "last"):
        return text
    return _positive(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _rates(text: str) -> list[float]:
    try:
        return sorted({float(rate) for rate in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between, such as 1e-3,3e-3") from None


def _output(options: argparse.Namespace, command: str) -> Path:
    """The folder for a command's results, made."""
    run = options.checkpoint.parent if options.checkpoint.name == "checkpoints" else options.checkpoint
    folder: Path = options.output_dir or run / command
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _first_line(run: Callable[..., Any]) -> str:
    return (run.__doc__ or "").partition("\n")[0]


def print_rules(options: argparse.Namespace) -> None:
    """Print the table of rules: what each is made of, and which engines serve it."""
    print(table())


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "bench": (_bench_options, run_benchmark),
    "eval": (_eval_options, evaluate_checkpoint),
    "generate": (_generate_options, generate_text),
    "rules": (lambda parser: None, print_rules),
}
