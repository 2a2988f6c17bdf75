"""`titans-jax plot`: pictures that need no checkpoint."""

import argparse
from pathlib import Path

from titans_jax import metrics
from titans_jax.cli.options import first_line
from titans_jax.memory import PRESETS
from titans_jax.series import SCENARIOS, run_scenario, series_memory, series_rule


def configure(parser: argparse.ArgumentParser) -> None:
    """Which picture, and of what."""
    kinds = parser.add_subparsers(title="pictures", required=True, metavar="KIND")
    surprise = kinds.add_parser("surprise", help=first_line(plot_surprise), description=plot_surprise.__doc__)
    titles = "; ".join(f"{name}: {scenario.title}" for name, scenario in SCENARIOS.items())
    surprise.add_argument("--scenario", choices=["all", *SCENARIOS], default="all", help=f"{titles} (default all)")
    rule = "one of `titans-jax rules`, of 16 channels (default: titans without a layer norm)"
    surprise.add_argument("--rule", choices=list(PRESETS), metavar="NAME", help=rule)
    surprise.add_argument("--seed", type=int, default=42, help="of the memory's first weights (default 42)")
    folder = Path("outputs", "plot_surprise")
    surprise.add_argument("--output-dir", type=Path, default=folder, help="where they go (default %(default)s)")
    surprise.set_defaults(draw=plot_surprise)


def run(options: argparse.Namespace) -> None:
    """Draw what a memory does: surprise, momentum and forgetting over a series."""
    options.draw(options)


def plot_surprise(options: argparse.Namespace) -> None:
    """Read made-up series with a memory that learns as it reads, and draw where it is surprised."""
    folder: Path = options.output_dir
    memory = series_memory(PRESETS[options.rule](16) if options.rule else series_rule())
    names = list(SCENARIOS) if options.scenario == "all" else [options.scenario]
    result: dict[str, object] = {"rule": options.rule or "series_rule", "seed": options.seed}
    with metrics.progress(len(names), "plot") as bar:
        for name in names:
            result |= run_scenario(name, folder, memory=memory, seed=options.seed)
            bar.advance(1)
    metrics.write_result(folder, result)
    files = [f"scenario_{name}.png" for name in names]
    print("\n".join(f"{SCENARIOS[name].title}: {folder / file}" for name, file in zip(names, files, strict=True)))
    print(f"{'written':<14} {folder}/: {', '.join(files)}, each with its numbers in .json, and result.json")
