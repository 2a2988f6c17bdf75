"""`compare`: models side by side on the same batches: their losses over seeds, their costs, and their samples."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from titans_jax import config as configs
from titans_jax import data, metrics
from titans_jax.bench.costs import costs
from titans_jax.bench.fit import fit, forget, held_out, program
from titans_jax.bench.report import Rows
from titans_jax.bench.tuning import RATE, mean_cell, over_seeds, trainings, tuned
from titans_jax.config import Experiment
from titans_jax.evaluation import by_position
from titans_jax.results import Column, Row, markdown
from titans_jax.training.placement import Placement
from titans_jax.training.report import sample

MODELS = {name: {"block": name} for name in ("lmm", "mac", "mag", "mal")} | {
    "transformer": {"block": "transformer", "attention": "full"},
    "sliding": {"block": "transformer", "attention": "sliding"},
}
"""The changes of each to the base's model; any other name is a config, whose model is taken."""
SCORES = ("loss", "perplexity", "bits_per_byte", "accuracy")
EVALUATIONS = 10
"""Evaluations on held-out text in one training."""
PLACES = 16
"""Parts of a sequence with a loss each."""


def experiments_of(base: Experiment, names: Sequence[str], changes: Sequence[str]) -> dict[str, Experiment]:
    """base with the model of each name: of MODELS, or of a config with these `--section.field value` changes.

    Text, optimizer and training are base's, so that all read the same batches in the same order. Full attention is
    given the context that a training sequence or a sample needs, since it computes on every slot that it has.
    Raises ValueError for a name that is neither a model nor a config, and for a model that cannot be trained.
    """
    tokenizer, shards = data.load_tokenizer(base.data.tokenizer), Placement.of(base.mesh).shards
    context = max(base.data.sequence, len(tokenizer.encode(base.train.prompt)) + base.train.sample)
    found = {}
    for name in names:
        if name in MODELS:
            model = replace(base.model, **MODELS[name])  # type: ignore[arg-type]
        elif name in configs.available():
            model = configs.override(configs.load(name), changes).model
        else:
            raise ValueError(f"no model named {name!r}; known are {', '.join(MODELS)}, and the names of configs")
        if model.grows:
            model = replace(model, context=context)
        found[name] = replace(base, name=name, model=model)
        configs.validate(found[name], vocabulary=tokenizer.vocab_size, shards=shards)
    return found


def compare_models(
    experiments: Mapping[str, Experiment], changed: Mapping[str, str], rates: Sequence[float], seeds: int, rows: Rows
) -> dict[str, Row]:
    """Tune, train and measure; the numbers by name.

    changed: by model, the change that matched it, for the table. With several rates each model takes the one of the
    least held-out loss on seed 0. Results are of seeds 1, 2, ..., at which every model reads the same batches.
    Raises ValueError for what cannot be trained.
    """
    found = {}
    steps = next(iter(experiments.values())).train.steps
    with metrics.Progress(steps * len(experiments) * trainings(rates, seeds), "compare") as bar:
        for name, experiment in experiments.items():
            found[name] = tuned(rows, name, experiment, rates, seeds, bar, _train)
            found[name] |= _summary(found[name]["seeds"])
            forget()
    measured = rows.get("costs", lambda: costs(experiments))
    forget()
    return {name: found[name] | measured[name] | {"changed": changed[name]} for name in experiments}


def _train(experiment: Experiment, bar: metrics.Progress) -> Row:
    """One training: its scores at the end and along the way; the loss is None if they are not finite."""
    curve: dict[str, list[float]] = {name: [] for name in ("step", *SCORES)}
    memory: dict[str, float] = {}
    places: list[float] = []
    definition = program(experiment).definition
    every = max(1, experiment.train.steps // EVALUATIONS)

    def after_step(step: int, params: Any, step_metrics: Mapping[str, Any]) -> None:
        if step % every and step != experiment.train.steps:
            return
        found = held_out(experiment, definition.model(params))
        scores = found.summary()
        places[:] = by_position(found, PLACES)["loss"]
        if math.isfinite(scores["loss"]):
            for name, values in curve.items():
                values.append(step if name == "step" else scores[name])
        if step_metrics["memory"] is not None:
            memory.update({name: float(x.mean()) for name, x in step_metrics["memory"]._asdict().items()})

    done = fit(experiment, bar, after_step)
    if not done.finite or curve["step"][-1:] != [experiment.train.steps]:
        return {"loss": None, "curve": curve}
    model = definition.model(jax.device_put(jax.device_get(done.params), jax.local_devices()[0]))
    end = {name: curve[name][-1] for name in SCORES}
    text = sample(experiment, model, data.load_tokenizer(experiment.data.tokenizer))
    return end | {"curve": curve, "by_place": [float(loss) for loss in places], "memory": memory, "sample": text}


def _summary(trained: Sequence[Row]) -> Row:
    """Mean and spread of each score over the seeds, and the means of the memories' telemetry."""
    summary: Row = {}
    for name in SCORES:
        summary |= over_seeds(name, [row.get(name) for row in trained])
    each = [row["memory"] for row in trained if row.get("memory")]
    return summary | {"memory": {name: statistics.mean(row[name] for row in each) for name in (each or [{}])[0]}}


def tables(found: Mapping[str, Row]) -> str:
    """Tables in markdown: how well the models predict, their costs, and the telemetry of their memories."""
    contexts = next(iter(found.values()))["contexts"]
    memories = {name: row["memory"] for name, row in found.items() if row["memory"]}
    fields: Row = next(iter(memories.values()), {})
    speeds = _by_context("decode_tokens_per_second", contexts)
    telemetry: list[Column] = [(name, lambda row, name=name: f"{row[name]:.4g}") for name in fields]  # type: ignore[misc]
    parts: list[tuple[str, list[Column], Mapping[str, Row]]] = [
        ("Held-out text", QUALITY, found),
        ("Costs", COSTS, found),
        ("Bytes of state after so many tokens", _by_context("states", contexts), found),
        ("Tokens a second of one sequence after so many tokens", speeds, found),
        ("Memories in the last training step, means over layers, heads and tokens", telemetry, memories),
    ]
    return "\n\n".join(f"{title}:\n\n{markdown(columns, rows, 'model')}" for title, columns, rows in parts if rows)


def _score(name: str, digits: int) -> Column:
    return name.replace("_", " "), lambda row: mean_cell(row, name, f".{digits}f")


def _by_context(name: str, contexts: Sequence[int]) -> list[Column]:
    return [(f"{c:,}", lambda row, i=i: f"{row[name][i]:,.0f}") for i, c in enumerate(contexts)]  # type: ignore[misc]


QUALITY: list[Column] = [
    ("rate", RATE[1]),
    ("seeds", lambda row: str(len(row["seeds"]))),
    _score("loss", 4),
    _score("perplexity", 3),
    _score("bits_per_byte", 4),
    _score("accuracy", 4),
]
COSTS: list[Column] = [
    ("parameters", lambda row: f"{row['parameters']:,}"),
    ("state bytes", lambda row: f"{row['state_bytes']:,}"),
    ("MFLOPs a token", lambda row: f"{row['flops_per_token'] / 1e6:.2f}"),
    ("changed to match", lambda row: row["changed"]),
    ("training tokens/s", lambda row: f"{row['train_tokens_per_second']:,.0f}"),
    ("decode tokens/s", lambda row: f"{row['decode_tokens_per_second'][0]:,.0f}"),
    ("MB of a step", lambda row: "-" if row["step_bytes"] is None else f"{row['step_bytes'] / 1e6:,.1f}"),
]
