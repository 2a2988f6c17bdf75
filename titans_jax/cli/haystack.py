"""`titans-jax haystack`: retrieval of a needle from long texts, by length and depth."""

import argparse
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx

from titans_jax import data, files, metrics, plots, results, training
from titans_jax.bench.report import Rows
from titans_jax.cli.options import (
    checkpoint,
    load,
    load_options,
    needle_of,
    needle_options,
    path,
    positive,
    positives,
    run_folder,
    seed,
    stopped,
)
from titans_jax.data.tasks.passkey import NOISE
from titans_jax.evaluation.haystack import Cell, Hay, Needle, find_needles, row_size
from titans_jax.evaluation.loglikelihood import no_room

LENGTHS = "512,1024,2048,4096,8192,16384,32768,65536"
DEPTHS = "0,0.25,0.5,0.75,1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: checkpoints, needle, haystack, lengths and depths."""
    shown = "a run's output folder, or released; repeatable, for several heatmaps"
    parser.add_argument("--checkpoint", type=checkpoint, required=True, action="append", metavar="DIR", help=shown)
    load_options(parser)
    needle_options(parser)
    hay = "folder or file of texts, or a corpus by name (default: the noise of the passkey task)"
    parser.add_argument("--haystack-dir", metavar="DIR", help=hay)
    parser.add_argument("--lengths", type=positives, default=LENGTHS, help="in tokens (default %(default)s)")
    parser.add_argument("--depths", type=_depths, default=DEPTHS, help="0: start, 1: end (default %(default)s)")
    parser.add_argument("--samples", type=positive, default=4, help="samples of each cell (default %(default)s)")
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the keys and of where the text starts (default 0)"
    )
    room = "tokens that full attention caches; not with learned positions (default: as in training)"
    parser.add_argument("--context", type=positive, help=room)
    folder = Path("outputs", "haystack")
    parser.add_argument("--output-dir", type=path, default=folder, help="output folder (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Hide a needle in long texts and ask checkpoints for it; finished lengths are kept on disk."""
    needle = needle_of(options, Needle())
    settings = {"needle": vars(needle), "haystack": options.haystack_dir or "noise", "context": options.context}
    settings |= {name: getattr(options, name) for name in ("depths", "samples", "seed")}
    rows = Rows(options.output_dir, settings)
    texts = data.load_documents(options.haystack_dir) if options.haystack_dir else [NOISE]
    with training.stopping(stopped(options.output_dir)), training.memory_advice():
        grids = {name: _test(name, path, texts, needle, options, rows) for name, path in _named(options).items()}
    _report(grids, options)


def _test(
    name: str, path: Path, texts: list[str], needle: Needle, options: argparse.Namespace, rows: Rows
) -> dict[int, list[Cell] | None]:
    """The cells of each length; None for a length that does not fit into the context."""
    experiment, model, step = load(path, options)
    if options.context:
        config = replace(experiment.model, context=options.context)
        model = training.define(config).model(nnx.to_pure_dict(nnx.split(model)[1]))
    hay = Hay(texts, data.load_tokenizer(experiment.data.tokenizer))
    sizes = {length: row_size(hay, needle, length) for length in options.lengths}
    reasons = {length: no_room(model, size) for length, size in sizes.items()}
    if all(reasons.values()):
        raise ValueError(f"{name}: {reasons[options.lengths[0]]}; --context gives full attention more room")
    keys = {length: f"{name}, step {step}, {length} tokens" for length in options.lengths}
    each = len(options.depths) * options.samples
    total = sum(size for length, size in sizes.items() if not reasons[length]) * each
    with metrics.Progress(total, name) as bar:
        found: dict[int, list[Cell] | None] = {}
        for length in options.lengths:
            if reasons[length]:
                print(f"{name}: not tested: {reasons[length]}", flush=True)
                found[length] = None
                continue
            if keys[length] in rows.rows:
                bar.advance(sizes[length] * each)

            def make(length: int = length) -> results.Row:
                def on_tokens(count: int) -> None:
                    bar.advance(count, tokens=count)

                settings: dict[str, Any] = {name: getattr(options, name) for name in ("depths", "samples", "seed")}
                return {"cells": find_needles(model, hay, needle, length=length, on_tokens=on_tokens, **settings)}

            found[length] = rows.get(keys[length], make)["cells"]
    return found


def _report(grids: dict[str, dict[int, list[Cell] | None]], options: argparse.Namespace) -> None:
    """Write the table, the picture and result.json."""
    folder: Path = options.output_dir
    means = {
        name: {n: sum(cell["exact"] for cell in cells) / len(cells) if cells else None for n, cells in found.items()}
        for name, found in grids.items()
    }
    shown = {
        name: {f"{n}": "does not fit" if mean is None else f"{mean:.0%}" for n, mean in row.items()}
        for name, row in means.items()
    }
    columns: list[results.Column] = [(f"{n:,}", operator.itemgetter(f"{n}")) for n in options.lengths]
    table = results.markdown(columns, shown, "whole answers right, by length")
    files.write(folder / "table.md", table + "\n")
    written = ["rows.json", "table.md", "result.json"]
    if plots.available():
        kinds = {
            name: {
                kind: [
                    [cells[i][kind] if cells else None for cells in found.values()] for i in range(len(options.depths))
                ]
                for kind in ("exact", "accuracy")
            }
            for name, found in grids.items()
        }
        plots.haystack_picture(kinds, options.lengths, options.depths, folder / "heatmap.png")
        written += ["heatmap.png", "heatmap.json"]
    result: dict[str, Any] = {"samples": options.samples, "seed": options.seed, "depths": len(options.depths)}
    result |= {f"{name}_exact_{n}": mean for name, row in means.items() for n, mean in row.items()}
    results.write_result(folder, result)
    print(f"{table}\n\nwritten: {folder}/: {', '.join(written)}")


def _named(options: argparse.Namespace) -> dict[str, Path]:
    """The checkpoints by name: the name of their folder, or the path if two folders have the same name."""
    names = [run_folder(path).resolve().name for path in options.checkpoint]
    unique = len(set(names)) == len(names)
    return {name if unique else str(path): path for name, path in zip(names, options.checkpoint, strict=True)}


def _depths(text: str) -> list[float]:
    try:
        depths = sorted({float(part) for part in text.split(",")})
    except ValueError:
        depths = [-1.0]
    if not 0 <= depths[0] <= depths[-1] <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers from 0 to 1 separated by commas, such as 0,0.5,1")
    return depths
