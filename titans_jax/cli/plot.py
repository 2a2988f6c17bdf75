"""`titans-jax plot`: pictures of memories that read a series; they need no checkpoint."""

import argparse
from pathlib import Path

import numpy as np

from titans_jax import metrics, results
from titans_jax.cli.options import first_line, path, seed
from titans_jax.memory import PRESETS
from titans_jax.plots.style import matplotlib
from titans_jax.series import SCENARIOS, draw_learning, run_scenario, series_memory, series_rule
from titans_jax.waiting import waiting


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each kind of picture."""
    kinds = parser.add_subparsers(title="pictures", required=True, metavar="KIND")
    surprise, learning = (
        kinds.add_parser(name, help=first_line(draw), description=draw.__doc__)
        for name, draw in (("surprise", plot_surprise), ("learning", plot_learning))
    )
    titles = "; ".join(f"{name}: {scenario.title}" for name, scenario in SCENARIOS.items())
    surprise.add_argument("--scenario", choices=["all", *SCENARIOS], default="all", help=f"{titles} (default all)")
    rule = "a rule of `titans-jax rules`, with 16 channels (default: titans without a layer norm)"
    surprise.add_argument("--rule", choices=list(PRESETS), metavar="NAME", help=rule)
    folder = Path("outputs", "plot_surprise")
    surprise.add_argument("--output-dir", type=path, default=folder, help="output folder (default %(default)s)")
    surprise.set_defaults(draw=plot_surprise)
    file = Path("outputs", "memory_learns.png")
    learning.add_argument("--output", type=path, default=file, metavar="FILE", help="output file (default %(default)s)")
    learning.set_defaults(draw=plot_learning)
    for kind in (surprise, learning):
        kind.add_argument("--seed", type=seed, default=42, help="seed of the memory's initial weights (default 42)")


def run(options: argparse.Namespace) -> None:
    """Draw how a memory learns a series: its predictions, surprise, momentum and forgetting."""
    matplotlib()  # it says at once where it is not installed
    options.draw(options)


def plot_surprise(options: argparse.Namespace) -> None:
    """Draw the surprise of a memory that reads synthetic series."""
    folder: Path = options.output_dir
    memory = series_memory(PRESETS[options.rule](16) if options.rule else series_rule())
    names = list(SCENARIOS) if options.scenario == "all" else [options.scenario]
    result: dict[str, object] = {"rule": options.rule or "series_rule", "seed": options.seed}
    with metrics.Progress(len(names), "plot") as bar:
        for name in names:
            result |= run_scenario(name, folder, memory=memory, seed=options.seed)
            bar.advance(1)
    results.write_result(folder, result)
    files = [f"scenario_{name}.png" for name in names]
    print("\n".join(f"{SCENARIOS[name].title}: {folder / file}" for name, file in zip(names, files, strict=True)))
    print(f"{'written':<14} {folder}/: {', '.join(files)}, each with its numbers in .json, and result.json")


def plot_learning(options: argparse.Namespace) -> None:
    """Draw a memory that learns a wave; the wave changes, and it learns the new one."""
    with waiting("reading the wave"):
        surprise = np.asarray(draw_learning(options.output, options.seed).surprise)
    first, before, after, last = (
        float(part[:20].mean()) for part in (surprise, surprise[130:], surprise[150:], surprise[-20:])
    )
    print(f"mean surprise of 20 values: {first:.2f} at first, {before:.2f} before the wave changes, {after:.2f} after, "
          f"{last:.2f} at the end")  # fmt: skip
    print(f"written: {options.output} and its numbers in {options.output.with_suffix('.json').name}")
