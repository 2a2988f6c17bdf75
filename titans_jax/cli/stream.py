"""`titans-jax stream`: scores of a text of any size, with a state of fixed size."""

import argparse
import contextlib
import ctypes
import itertools
import math
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import jax

from titans_jax import config, data, files, metrics, plots, results, training
from titans_jax.cli.options import checkpoint, load, load_options, output, path, positive
from titans_jax.compiling import ONCE
from titans_jax.config import Experiment
from titans_jax.decode import streaming
from titans_jax.evaluation import StreamEvaluator, curves, load_state
from titans_jax.nn import LM
from titans_jax.training.errors import stop_requested
from titans_jax.waiting import waiting

WARM_UP = 256
"""Blocks of tokens before resident memory and compilations are measured."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the text, the model, and the intervals of scores and saved states."""
    parser.usage = "titans-jax stream FILE (--checkpoint DIR | --config NAME [--section.field value ...]) [options]"
    parser.add_argument("file", metavar="FILE", help="UTF-8 text of any size; - for standard input")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=checkpoint, metavar="DIR", help="a run's output folder, or released")
    model.add_argument("--config", help="an untrained model of this config, to measure the cost of reading")
    load_options(parser)
    other = "start from the state in another stream's output folder, as if this text continued that one"
    parser.add_argument("--from", dest="source", type=path, metavar="DIR", help=other)
    parser.add_argument(
        "--window", type=positive, default=4096, help="tokens per line of metrics.jsonl (default %(default)s)"
    )
    parser.add_argument("--segment", type=positive, default=512, help="tokens read at once (default %(default)s)")
    save = "tokens between two saved states (default %(default)s)"
    parser.add_argument("--save-every", type=positive, default=1 << 20, help=save)
    resume = "resume the stream in the output folder; --no-resume removes its state and starts over"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    where = "output folder (default: a folder in the checkpoint's run, or outputs/stream)"
    parser.add_argument("--output-dir", type=path, help=where)
    parser.set_defaults(changes=[])


def run(options: argparse.Namespace) -> None:
    """Score a text of any size: bits per byte and surprise. Each token is scored before the memory learns from it.

    The same command resumes an interrupted stream; standard input must then be given from its start.
    """
    folder = output(options, "stream") if options.checkpoint else options.output_dir or Path("outputs", "stream")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        file: BinaryIO = sys.stdin.buffer if options.file == "-" else enter(open(options.file, "rb"))
        with waiting("opening"):
            evaluator, facts, tokenizer = _open(options, folder, stack)
        stack.callback(evaluator.log.close)
        blocks = data.token_blocks(file, tokenizer, options.segment, evaluator.position)
        first = [*itertools.islice(blocks, 1)]  # before compiling: it may not be text
        size = None if options.file == "-" else os.fstat(file.fileno()).st_size
        enter(training.memory_advice())
        _give_back_memory()
        with training.stopping(), waiting("compiling"):
            evaluator.compile()
        stop = enter(stop_requested())
        bar = enter(metrics.Progress(size, "stream", initial=evaluator.total.bytes))
        footprint = enter(metrics.Footprint(WARM_UP))
        for tokens, size_in_bytes in evaluator.evaluate(itertools.chain(first, blocks), save_every=options.save_every):
            total = evaluator.total
            numbers = {"bits/byte": total.nll / math.log(2) / total.bytes, "MiB": footprint.step() / 2**20}
            bar.advance(size_in_bytes, tokens=tokens, **numbers)
            if stop.is_set():
                evaluator.save()
                resume = f"the state is in {folder}, and the same command resumes it"
                raise training.Stopped(f"stopped after {total.tokens:,} tokens; {resume}")
    if footprint.steps or not (folder / "result.json").exists():
        _report(folder, evaluator, facts | footprint.found() | {"tokens_per_second": bar.rate})
    else:
        print(f"{folder}: all {evaluator.total.tokens:,} tokens were read before; the text has no new tokens")


def _open(
    options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack
) -> tuple[StreamEvaluator, dict[str, Any], data.Tokenizer]:
    """The evaluator, at the start or at the saved state; the facts for result.json; and the tokenizer.

    stack: it keeps the folder locked.
    """
    experiment, model, facts = _load(options)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    start = streaming.init(model, tokenizer.separator)
    if options.source:
        start = load_state(options.source, model, start)
    stack.enter_context(files.locked(folder))
    if not options.resume:
        files.remove(folder / "state")
        (folder / "result.json").unlink(missing_ok=True)
    settings = {"segment": options.segment, "window": options.window, "from": str(options.source or "")}
    return StreamEvaluator(folder, model, start, tokenizer.byte_lengths, settings), facts | settings, tokenizer


def _load(options: argparse.Namespace) -> tuple[Experiment, LM, dict[str, Any]]:
    if options.checkpoint:
        if options.changes:
            raise ValueError(f"unrecognized arguments: {' '.join(options.changes)}; they are for --config")
        experiment, model, step = load(options.checkpoint, options)
        return experiment, model, {"checkpoint": str(options.checkpoint), "step": step}
    experiment = config.override(config.load(options.config), options.changes, "titans-jax stream", options.flags)
    config.validate(experiment, vocabulary=data.load_tokenizer(experiment.data.tokenizer).vocab_size, shards=1)
    definition = training.define(experiment.model)
    params = jax.jit(definition.init, compiler_options=ONCE)(jax.random.key(experiment.train.seed))
    return experiment, definition.model(params), {"config": options.config, "step": 0}


def _give_back_memory() -> None:
    """Return freed buffers to the system at once: glibc keeps some for each thread, and more over time."""
    threshold = -3  # M_MMAP_THRESHOLD
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(threshold, 1 << 18)


def _report(folder: Path, evaluator: StreamEvaluator, result: dict[str, Any]) -> None:
    """Write result.json and the picture, and print a few lines."""
    total = evaluator.total
    if not total.tokens:
        raise ValueError("there is nothing to read; give a text")
    means = {name: value if math.isfinite(value) else None for name, value in total.means().items()}
    result = means | {"tokens": total.tokens, "bytes": total.bytes, "non_finite": total.non_finite} | result
    written = ["metrics.jsonl", "state/", "result.json"]
    if plots.available():
        plots.stream_picture(curves(folder), folder / "stream.png")
        written += ["stream.png", "stream.json"]
    results.write_result(folder, result)
    print(results.lines(result, 28))
    print(f"{'written':<28} {folder}/: {', '.join(written)}")
