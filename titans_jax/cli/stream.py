"""`titans-jax stream`: a text of any size, read to its end."""

import argparse
import contextlib
import ctypes
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax

from titans_jax import config, data, metrics, plots, training
from titans_jax.cli.options import output, positive, which
from titans_jax.config import Experiment
from titans_jax.decode import streaming
from titans_jax.evaluation import Following, curves, load_state
from titans_jax.nn import LM
from titans_jax.training.guards import stop_requested

WARM_UP = 256
"""Blocks after which memory and compilations are watched."""


def configure(parser: argparse.ArgumentParser) -> None:
    """What is read by which model, and how often it is written down."""
    parser.usage = "titans-jax stream FILE (--checkpoint DIR | --config NAME [--section.field value ...]) [options]"
    parser.add_argument("file", metavar="FILE", help="UTF-8 text of any size; - for standard input")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="a run's output folder")
    model.add_argument("--config", help="a config, untrained: to measure what reading costs")
    parser.add_argument("--which", type=which, default="best", help="best, last or a step (default best)")
    other = "begin with the state that another stream left in its output folder, as if this text followed that one"
    parser.add_argument("--from", dest="source", type=Path, metavar="DIR", help=other)
    parser.add_argument("--window", type=positive, default=4096, help="tokens a line is about (default %(default)s)")
    parser.add_argument("--segment", type=positive, default=512, help="tokens read at once (default %(default)s)")
    save = "tokens between two saved states (default %(default)s)"
    parser.add_argument("--save-every", type=positive, default=1 << 20, help=save)
    resume = "go on with the stream in the output folder; --no-resume removes its state and starts over"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    where = "where results go (default: a folder in the checkpoint's run, or outputs/stream)"
    parser.add_argument("--output-dir", type=Path, help=where)
    parser.set_defaults(changes=[])


def run(options: argparse.Namespace) -> None:
    """Read a text of any size: bits per byte and surprise as it goes, each token scored before anything learns from it.

    An interrupted stream goes on when the same command is given again; standard input is then given from its beginning.
    """
    folder = output(options, "stream") if options.checkpoint else options.output_dir or Path("outputs", "stream")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        file: BinaryIO = sys.stdin.buffer if options.file == "-" else enter(open(options.file, "rb"))
        following, facts, tokenizer = _open(options, folder)
        stack.callback(following.log.close)
        blocks = data.token_blocks(file, tokenizer, options.segment, following.place)
        size = None if options.file == "-" else os.fstat(file.fileno()).st_size
        stop, _, _ = enter(stop_requested()), enter(training.memory_advice()), enter(_diverging())
        bar = enter(metrics.progress(size, "stream", initial=following.total.bytes))
        footprint = enter(metrics.Footprint(WARM_UP))

        _give_back_memory()
        following.warm()
        for tokens, read in following.follow(blocks, save_every=options.save_every):
            total = following.total
            shown = {"bits/byte": total.nll / math.log(2) / total.bytes, "MiB": footprint.step() / 2**20}
            bar.advance(read, tokens=tokens, **shown)
            if stop.is_set():
                following.save()
                goes_on = f"{folder} keeps the state, and the same command goes on"
                raise training.Stopped(f"stopped after {total.tokens:,} tokens; {goes_on}")
    if footprint.steps or not (folder / "result.json").exists():
        _report(folder, following, facts | footprint.found() | {"tokens_per_second": bar.rate})
    else:
        print(f"{folder}: read to its end before, {following.total.tokens:,} tokens; nothing was added since")


def _open(options: argparse.Namespace, folder: Path) -> tuple[Following, dict[str, Any], data.Tokenizer]:
    """The model at the beginning of the text, or where it was saved, and what is said of it in result.json."""
    experiment, model, facts = _load(options)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    start = streaming.init(model, tokenizer.separator)
    if options.source:
        start = load_state(options.source, model, start)
    if not options.resume:
        shutil.rmtree(folder / "state", ignore_errors=True)
        (folder / "result.json").unlink(missing_ok=True)
    settings = {"segment": options.segment, "window": options.window, "from": str(options.source or "")}
    return Following(folder, model, start, tokenizer.byte_lengths, settings), facts | settings, tokenizer


def _load(options: argparse.Namespace) -> tuple[Experiment, LM, dict[str, Any]]:
    if options.checkpoint:
        if options.changes:
            raise ValueError(f"unrecognized arguments: {' '.join(options.changes)}; they are for --config")
        experiment, model, step = training.load(options.checkpoint, options.which)
        return experiment, model, {"checkpoint": str(options.checkpoint), "step": step}
    experiment = config.override(config.load(options.config), options.changes, prog="titans-jax stream")
    config.validate(experiment, vocabulary=data.load_tokenizer(experiment.data.tokenizer).vocab_size, shards=1)
    definition = training.define(experiment.model)
    params = jax.jit(definition.init)(jax.random.key(experiment.train.seed))
    return experiment, definition.model(params), {"config": options.config, "step": 0}


def _give_back_memory() -> None:
    """Have freed buffers go back to the system: glibc would keep some for each thread, more as time goes on."""
    threshold = -3  # M_MMAP_THRESHOLD
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(threshold, 1 << 18)


@contextlib.contextmanager
def _diverging() -> Iterator[None]:
    """A state that is not finite is not saved, and there is no going on."""
    try:
        yield
    except FloatingPointError as error:
        raise training.Diverged(f"diverged: {error}") from error


def _report(folder: Path, following: Following, result: dict[str, Any]) -> None:
    """result.json, the picture, and a few lines."""
    total = following.total
    if not total.tokens:
        raise ValueError("there is nothing to read; give a text")
    means = {name: value if math.isfinite(value) else None for name, value in total.means().items()}
    result = means | {"tokens": total.tokens, "bytes": total.bytes, "non_finite": total.non_finite} | result
    written = ["metrics.jsonl", "state/", "result.json"]
    if plots.available():
        plots.stream_picture(curves(folder), folder / "stream.png")
        written += ["stream.png", "stream.json"]
    metrics.write_result(folder, result)
    shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in result.items()}
    print("\n".join(f"{name:<28} {value}" for name, value in shown.items()))
    print(f"{'written':<28} {folder}/: {', '.join(written)}")
