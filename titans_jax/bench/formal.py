"""`bench formal`: models trained on words of formal languages, and tested on words twice as long."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from titans_jax import config as configs
from titans_jax import data, metrics
from titans_jax.bench.fit import fit, model_of
from titans_jax.bench.report import Rows
from titans_jax.bench.tuning import kept, mean_cell, over_seeds
from titans_jax.config import Experiment
from titans_jax.evaluation import evaluate
from titans_jax.results import Column, Row, markdown

_LMM = ("--model.block", "lmm", "--model.memory.max-rate", "1")
FORMAL_MODELS: dict[str, tuple[str, ...]] = {
    "hope": (),
    "hope-frozen": ("--model.memory.frozen",),
    "transformer": ("--model.block", "transformer"),
    "transformer-2": ("--model.block", "transformer", "--model.depth", "2"),
    "deltanet-flip": (*_LMM, "--model.memory.rule", "deltanet", "--model.memory.max-rate", "2"),
    "deltanet": (*_LMM, "--model.memory.rule", "deltanet"),
    "gated_deltanet": (*_LMM, "--model.memory.rule", "gated_deltanet"),
    "linear_attention": (*_LMM, "--model.memory.rule", "linear_attention"),
}
"""The changes of each to the experiment that is compared.

To count modulo 2, a write must change the sign of what a memory holds under its key, which it multiplies by
keep - rate. The rate may reach 2 in deltanet-flip and in hope (16 times the unit rate of a chunk of 8). Where it
reaches 1, deltanet can still do it, with a keep of 0; gated_deltanet cannot, as it multiplies by keep (1 - rate).
HOPE writes with one key and rate to the memories that give keys and rates; in hope-frozen these are not written.
"""

COMMONEST = "always the commonest label"
KINDS = ("within", "beyond")


def compare_formal(
    base: Experiment, names: Sequence[str], languages: Sequence[str], seeds: int, rows: Rows
) -> tuple[str, dict[str, Row]]:
    """Train each model on each language for train.steps steps, with seeds 0, 1, ...; the table, and its rows.

    Accuracies are of labels on held-out words, within training's length and at as many positions beyond it.
    Raises ValueError for a name that is not in FORMAL_MODELS, or a language that is no task.
    """
    for name in names:
        if name not in FORMAL_MODELS:
            raise ValueError(f"no model named {name!r}; known are {', '.join(FORMAL_MODELS)}")
    languages = [data.tasks.check_task(language) for language in languages]
    length, shown = base.data.sequence, {}
    with metrics.Progress(base.train.steps * len(names) * len(languages) * seeds, "formal") as bar:
        for language in languages:
            for name in names:
                made = []
                for seed in range(seeds):
                    experiment = _experiment(base, name, language, seed)
                    made.append(kept(rows, f"{language}, {name}, seed {seed}", experiment, bar, _train))
                row: Row = {"each": [row["beyond"] for row in made], "parameters": made[0]["parameters"]}
                for kind in KINDS:
                    row |= over_seeds(kind, [row[kind] for row in made])
                shown[f"{language}: {name}"] = row
            shown[f"{language}: {COMMONEST}"] = _commonest(replace(base.data, task=language))
    columns: list[Column] = [
        (f"accuracy to {length}", lambda row: mean_cell(row, "within", ".1%")),
        (f"accuracy from {length + 1} to {2 * length}", lambda row: mean_cell(row, "beyond", ".1%")),
        ("seeds, the longer", lambda row: ", ".join(f"{x:.1%}" for x in row["each"])),
        ("parameters", lambda row: f"{row['parameters']:,}" if row["parameters"] else ""),
    ]
    return markdown(columns, shown, "language: model"), shown


def _experiment(base: Experiment, name: str, language: str, seed: int) -> Experiment:
    changed = configs.override(base, FORMAL_MODELS[name])
    return replace(
        changed,
        data=replace(changed.data, task=language),
        model=replace(changed.model, context=2 * changed.data.sequence),
        train=replace(changed.train, seed=seed),
    )


def _train(experiment: Experiment, bar: metrics.Progress) -> Row:
    """The accuracies of one training; 0 where its loss is not finite."""
    done = fit(experiment, bar)
    row: Row = {"steps": len(done.losses), "finite": done.finite, "parameters": metrics.count(done.params)}
    scores = _accuracies(model_of(done), experiment) if done.finite else dict.fromkeys(KINDS, 0.0)
    return row | {"loss": done.losses[-1] if done.finite else None} | scores


def _accuracies(model: Any, experiment: Experiment) -> dict[str, float]:
    lengths = data.load_tokenizer(experiment.data.tokenizer).byte_lengths
    limit = experiment.train.eval_batches
    return {kind: evaluate(model, _words(experiment.data, kind, limit), lengths)["accuracy"] for kind in KINDS}


def _words(config: data.DataConfig, kind: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Held-out words of twice the length, masked to the labels within training's length or beyond it."""
    for batch in data.held_out_batches(replace(config, sequence=2 * config.sequence), limit=limit):
        batch["mask"][:, slice(config.sequence, None) if kind == "within" else slice(config.sequence)] = 0
        yield batch


def _commonest(config: data.DataConfig) -> Row:
    """The accuracy of a constant answer."""
    row: Row = {"parameters": None, "each": []}
    for kind in KINDS:
        labels = [batch["targets"][batch["mask"] != 0] for batch in _words(config, kind, 8)]
        counts = np.unique(np.concatenate(labels), return_counts=True)[1]
        row |= over_seeds(kind, [float(counts.max() / counts.sum())])
    return row
