"""`titans-jax compare`: several models trained on the same batches."""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titans_jax import config, data, files, plots, results, training
from titans_jax.bench.match import MATCHES, matched
from titans_jax.bench.models import MODELS, SCORES, compare_models, experiments_of, tables
from titans_jax.bench.report import Rows
from titans_jax.cli.options import comparison, path, positive, rates, stopped


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the models, the quantity that is matched, and the trainings."""
    parser.usage = "titans-jax compare [MODEL ...] [options] [--section.field value ...]"
    parser.epilog = f"MODEL is {', '.join(MODELS)}, or a config, whose model is used (default: those six)"
    base = "config of everything else; --section.field value changes a field (default %(default)s)"
    parser.add_argument("--config", default="text", help=base)
    by = "quantity that is equal in all models, as large as in the largest (default %(default)s)"
    parser.add_argument("--match", choices=MATCHES, default=MATCHES[0], help=by)
    parser.add_argument("--steps", type=positive, default=200, help="steps of each training (default %(default)s)")
    parser.add_argument("--seeds", type=positive, default=3, help="trainings of each model (default %(default)s)")
    grid = "learning rates, such as 3e-3,1e-2; each model uses its best (default: the config's rate)"
    parser.add_argument("--rates", type=rates, help=grid)
    folder = Path("outputs/compare")
    parser.add_argument("--output-dir", type=path, default=folder, help="output folder (default %(default)s)")
    parser.set_defaults(changes=[])


def run(options: argparse.Namespace) -> None:
    """Train models on the same batches and compare losses over seeds, speed, memory, state size and samples."""
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), options.changes))
    changes = options.changes[len(named) :]
    base = comparison(options, changes, "titans-jax compare")
    plain = experiments_of(base, list(dict.fromkeys(named)) or list(MODELS), changes)
    experiments, changed = matched(plain, options.match)
    folder: Path = options.output_dir
    models = {name: config.to_json(experiment)["model"] for name, experiment in experiments.items()}
    rows = Rows(folder, {"experiment": config.to_json(base), "models": models})
    with training.stopping(stopped(folder)), training.memory_advice():
        found = compare_models(experiments, options.rates or (), options.seeds, rows)
    table = f"{_conditions(options, base)}\n\n{tables(found, changed)}"
    files.write(folder / "table.md", table + "\n")
    files.write(folder / "samples.txt", _samples(found))
    drawn = _draw(found, folder)
    results.write_result(folder, _result(options, found))
    print(
        f"{table}\n\nwritten: {folder}/: {', '.join(['table.md', 'result.json', 'rows.json', 'samples.txt', *drawn])}"
    )


def _conditions(options: argparse.Namespace, base: config.Experiment) -> str:
    """The conditions of the measurement, as the first line of the table."""
    read = options.steps * base.data.batch * base.data.sequence
    grid = f"rates {', '.join(f'{rate:g}' for rate in options.rates)} tried on seed 0, " if options.rates else ""
    text = data.provenance(base.data.corpus)["source"]
    return (
        f"{text}; {options.steps} steps of {base.data.batch} x {base.data.sequence} tokens ({read:,} in all), the "
        f"same batches for every model; matched by {options.match}; {grid}results of {options.seeds} seeds, mean +- "
        "standard deviation."
    )


def _samples(found: Mapping[str, dict[str, Any]]) -> str:
    """The sample of each model's first seed."""
    samples = {name: row["trained"][0].get("sample", "(not finite)") for name, row in found.items()}
    return "\n\n".join(f"== {name}\n\n{text}" for name, text in samples.items()) + "\n"


def _draw(found: Mapping[str, dict[str, Any]], folder: Path) -> list[str]:
    """Draw the pictures and return their names; none without matplotlib."""
    if not plots.available():
        return []
    curves = {name: [row["curve"] for row in each["trained"]] for name, each in found.items()}
    plots.compare_curves(curves, folder / "curves.png")
    plots.compare_costs(found, folder / "costs.png")
    plots.compare_contexts(found, folder / "contexts.png")
    places = {name: [row["by_place"] for row in each["trained"] if "by_place" in row] for name, each in found.items()}
    plots.compare_places(places, folder / "places.png")
    return ["curves.png", "costs.png", "contexts.png", "places.png"]


def _result(options: argparse.Namespace, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """result.json: NAME_loss, NAME_loss_spread, NAME_state_bytes_65536 and so on."""
    flat: dict[str, Any] = {"steps": options.steps, "seeds": options.seeds, "match": options.match}
    single = ("rate", "parameters", "state_bytes", "flops_per_token", "step_bytes", "train_tokens_per_second")
    for name, row in found.items():
        for score in SCORES:
            flat |= {f"{name}_{score}": row[score], f"{name}_{score}_spread": row[f"{score}_spread"]}
        flat |= {f"{name}_{field}": row[field] for field in single}
        for context, state, speed in zip(row["contexts"], row["states"], row["decode_tokens_per_second"], strict=True):
            flat |= {f"{name}_state_bytes_{context}": state, f"{name}_decode_tokens_per_second_{context}": speed}
    return flat
