"""`titans-jax eval`: scores and a report of a checkpoint on held-out text."""

import argparse
from dataclasses import replace
from typing import get_args

from flax import nnx

from titans_jax import data, files, metrics, plots, results, training
from titans_jax.cli.options import checkpoint_options, corpus_option, load, output, positive, source_of
from titans_jax.decode import Sampling
from titans_jax.evaluation import RESETS, score
from titans_jax.evaluation.report import STEPS, Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the text, the resets of the memory, and the report."""
    checkpoint_options(parser)
    corpus_option(parser)
    parser.add_argument("--split", choices=get_args(data.Split), help="the held-out part, as data.split")
    parser.add_argument("--batch", type=positive, help="sequences of a batch (default: as in training)")
    parser.add_argument("--sequence", type=positive, help="tokens of a sequence (default: as in training)")
    parser.add_argument("--limit", type=positive, help="largest number of batches (default: all held-out text)")
    policies = "; ".join(f"{name}: {text}" for name, text in RESETS.items())
    parser.add_argument("--samples", type=positive, default=3, help="samples of the report (default 3)")
    parser.add_argument("--length", type=positive, default=256, help="tokens of each sample (default 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="temperature of the samples (default 0.8)")
    parser.add_argument("--no-report", action="store_true", help="only scores: no samples, no pictures, no report")
    parser.add_argument("--reset", choices=list(RESETS), default="sequence", help=f"{policies} (default sequence)")


def run(options: argparse.Namespace) -> None:
    """Score a checkpoint on held-out text and write a report: loss, samples, attention, memories."""
    if not options.no_report and not plots.available():
        raise ValueError("the report needs matplotlib: pip install titans-jax[plot], or give --no-report")
    Sampling(options.temperature)
    folder = output(options, "eval")
    experiment, model, step = load(options.checkpoint, options)
    names = ("split", "batch", "sequence")
    changes = {name: getattr(options, name) for name in names if getattr(options, name)}
    source = replace(source_of(experiment, options), **changes)
    tokenizer = data.load_tokenizer(source.tokenizer)
    stream = None if source.task else data.held_out_stream(source)
    batches = data.held_out_batches(source, limit=options.limit)
    total = len(stream.tokens) - 1 if stream else 0
    if stream and total < (options.sequence or 0):
        raise ValueError(f"--sequence {options.sequence}: the held-out text has {total} tokens; give at most that")
    if options.limit:
        total = min(total, options.limit * source.batch * source.sequence)
    with training.memory_advice(), metrics.Progress(total, "eval") as bar:
        counted = bar.each(batches, lambda batch: int(batch["mask"].sum()))
        scores = score(model, counted, tokenizer.byte_lengths, reset=options.reset)
    result = scores.summary() | {
        "corpus": source.corpus,
        "sequence": source.sequence,
        "checkpoint": str(options.checkpoint),
        "step": step,
    }
    results.write_result(folder, result)
    text = results.lines(result)
    files.write(folder / "result.txt", text + "\n")
    print(text)
    written = ["result.json", "result.txt"]
    if not options.no_report:
        size = metrics.count(nnx.split(model)[1])
        facts = {"model": f"{experiment.name}: {model.config.block}, {size:,} parameters"} | result
        batch = next(data.held_out_batches(source, limit=1))
        with training.memory_advice(), metrics.Progress(STEPS, "report") as bar:
            Report(folder, model, tokenizer, batch, facts).make(
                scores,
                bar,
                samples=options.samples,
                length=options.length,
                temperature=options.temperature,
                seed=experiment.train.seed,
            )
        written += ["report.html", "report.md", "report.json", "and their pictures"]
    print(f"{'written':<14} {folder}/: {', '.join(written)}")
