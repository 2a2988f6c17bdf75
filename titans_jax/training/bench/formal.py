"""Models on formal languages: trained on words of one length, tested on words twice as long."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from titans_jax import config as configs
from titans_jax import data, metrics
from titans_jax.config import Experiment
from titans_jax.evaluation import evaluate
from titans_jax.training.bench.fit import fit, model_of
from titans_jax.training.bench.rows import Column, Row, Rows, markdown
from titans_jax.training.bench.tuning import kept, mean_and_spread

_LMM = ("--model.block", "lmm", "--model.memory.max-rate", "1")
FORMAL_MODELS: dict[str, tuple[str, ...]] = {
    "hope": (),
    "hope-held": ("--model.memory.held",),
    "transformer": ("--model.block", "transformer"),
    "transformer-2": ("--model.block", "transformer", "--model.depth", "2"),
    "deltanet-flip": (*_LMM, "--model.memory.rule", "deltanet", "--model.memory.max-rate", "2"),
    "deltanet": (*_LMM, "--model.memory.rule", "deltanet"),
    "gated_deltanet": (*_LMM, "--model.memory.rule", "gated_deltanet"),
    "linear_attention": (*_LMM, "--model.memory.rule", "linear_attention"),
}
"""What each changes of the experiment that is compared.

To count modulo 2, a write must change the sign of what a memory has under its key, which it multiplies by keep - rate.
The rate may reach 2 in deltanet-flip and in hope (16 times the unit rate of a chunk of 8). Where it reaches 1, deltanet
can do it still, with a keep of 0; gated_deltanet cannot, as it multiplies by keep (1 - rate).
HOPE writes with one key and rate the memories that say keys and rates too; in hope-held these stay as they began.
"""

COMMONEST = "always the commonest label"


def compare_formal(
    base: Experiment, names: Sequence[str], languages: Sequence[str], seeds: int, rows: Rows
) -> tuple[str, dict[str, Row]]:
    """Train each model on each language for train.steps steps, with seeds 0, 1, ...; the table, and its rows.

    Accuracies are of labels, at positions that training reached and at as many after them, on held-out words.
    Raises ValueError for a name that is not of FORMAL_MODELS, or a language that is no task.
    """
    for name in names:
        if name not in FORMAL_MODELS:
            raise ValueError(f"no model named {name!r}; known are {', '.join(FORMAL_MODELS)}")
    languages = [data.tasks.check_task(language) for language in languages]
    length = base.data.sequence
    shown = {}
    with metrics.progress(base.train.steps * len(names) * len(languages) * seeds, "formal") as bar:
        for language in languages:
            for name in names:
                made = [_run(base, name, language, seed, rows, bar) for seed in range(seeds)]
                shown[f"{language}: {name}"] = _summary(made)
            shown[f"{language}: {COMMONEST}"] = _commonest(replace(base.data, task=language))
    titles = f"accuracy to {length}", f"accuracy from {length + 1} to {2 * length}"
    columns: list[Column] = [
        *((title, lambda row, kind=kind: _cell(row, kind)) for title, kind in zip(titles, KINDS, strict=True)),
        ("seeds, the longer", lambda row: ", ".join(f"{x:.1%}" for x in row["each"])),
        ("parameters", lambda row: f"{row['parameters']:,}" if row["parameters"] else ""),
    ]
    return markdown(columns, shown, "language: model"), shown


KINDS = ("within", "beyond")


def _run(base: Experiment, name: str, language: str, seed: int, rows: Rows, bar: metrics.Progress) -> Row:
    """The accuracies of one training."""
    experiment = configs.override(base, FORMAL_MODELS[name])
    experiment = replace(
        experiment,
        data=replace(experiment.data, task=language),
        model=replace(experiment.model, context=2 * experiment.data.sequence),
        train=replace(experiment.train, seed=seed),
    )
    return kept(rows, f"{language}, {name}, seed {seed}", experiment, bar, _train)


def _train(experiment: Experiment, bar: metrics.Progress) -> Row:
    done = fit(experiment, bar)
    row: Row = {"steps": len(done.losses), "finite": done.finite, "parameters": metrics.count(done.params)}
    scores = _accuracies(model_of(done), experiment) if done.finite else dict.fromkeys(KINDS, 0.0)
    return row | {"loss": done.losses[-1] if done.finite else None} | scores


def _accuracies(model: Any, experiment: Experiment) -> dict[str, float]:
    lengths = data.load_tokenizer(experiment.data.tokenizer).byte_lengths
    limit = experiment.train.eval_batches
    return {kind: evaluate(model, _words(experiment.data, kind, limit), lengths)["accuracy"] for kind in KINDS}


def _words(config: data.DataConfig, kind: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Held-out words of twice the length, of which the labels within training's length count, or those beyond."""
    for batch in data.held_out_batches(replace(config, sequence=2 * config.sequence), limit=limit):
        batch["mask"][:, slice(config.sequence, None) if kind == "within" else slice(config.sequence)] = 0
        yield batch


def _summary(made: Sequence[Row]) -> Row:
    each = {kind: [row[kind] for row in made] for kind in KINDS}
    row: Row = {"each": each["beyond"], "parameters": made[0]["parameters"]}
    for kind, values in each.items():
        row[kind], row[f"{kind}_spread"] = mean_and_spread(values)
    return row


def _commonest(config: data.DataConfig) -> Row:
    """What a constant answer would reach."""
    row: Row = {"parameters": None, "each": []}
    for kind in KINDS:
        labels = [batch["targets"][batch["mask"] != 0] for batch in _words(config, kind, 8)]
        counts = np.unique(np.concatenate(labels), return_counts=True)[1]
        row |= {kind: float(counts.max() / counts.sum()), f"{kind}_spread": None}
    return row


def _cell(row: Row, kind: str) -> str:
    spread = row[f"{kind}_spread"]
    return f"{row[kind]:.1%}" + ("" if spread is None else f" +- {spread:.1%}")
