"""`compare`: models side by side on the same batches: their losses over seeds, their costs, and their samples."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from titans_jax import config as configs
from titans_jax import data, metrics
from titans_jax.bench import interleave
from titans_jax.bench.fit import check, fit, forget, held_out, program, step_timer, train_all
from titans_jax.bench.interleave import Plan, Subject
from titans_jax.bench.report import Rows, over_seeds, table
from titans_jax.bench.steps import WRITTEN, next_tokens
from titans_jax.config import Experiment
from titans_jax.evaluation import by_position
from titans_jax.nearest import not_named
from titans_jax.nn import ModelConfig
from titans_jax.results import Row
from titans_jax.training.counts import flops_per_token, parameters, state_bytes
from titans_jax.training.report import sample

MODELS = {name: {"block": name} for name in ("lmm", "mac", "mag", "mal")} | {
    "transformer": {"block": "transformer", "attention": "full"},
    "sliding": {"block": "transformer", "attention": "sliding"},
}
"""The changes of each to the base's model; any other name is a config, whose model is taken."""
SCORES = ("loss", "perplexity", "bits_per_byte", "accuracy")
EVALUATIONS = 10
"""Evaluations on held-out text in one training."""
CONTEXTS = (256, 1024, 4096, 16384, 65536)
"""Tokens read so far, at which a state is weighed and the next token timed."""
PLACES = 16
"""Parts of a sequence with a loss each."""


def experiments_of(base: Experiment, names: Sequence[str], changes: Sequence[str]) -> dict[str, Experiment]:
    """base with the model of each name: of MODELS, or of a config with these `--section.field value` changes.

    Text, optimizer and training are base's, so that all read the same batches in the same order. Full attention is
    given the context that a training sequence or a sample needs, since it computes on every slot that it has.
    Raises ValueError for a name that is neither a model nor a config, and for a model that cannot be trained.
    """
    tokenizer = data.load_tokenizer(base.data.tokenizer)
    context = max(base.data.sequence, len(tokenizer.encode(base.train.prompt)) + base.train.sample)
    found = {}
    for name in names:
        if name in MODELS:
            model = replace(base.model, **MODELS[name])  # type: ignore[arg-type]
        elif name in configs.available():
            model = configs.override(configs.load(name), changes).model
        else:
            raise not_named("model", name, MODELS, ", and the names of configs", also=configs.available())
        if model.grows:
            model = replace(model, context=context)
        found[name] = replace(base, name=name, model=model)
        check(found[name])
    return found


def compare_models(
    experiments: Mapping[str, Experiment], rates: Sequence[float], seeds: int, rows: Rows
) -> dict[str, Row]:
    """Tune, train and measure; the numbers by name.

    Results are of seeds 1, 2, ..., at which every model reads the same batches: mean and spread of each score, and the
    means of the memories' telemetry. Raises ValueError for what cannot be trained.
    """
    found = train_all(experiments, rates, range(1, seeds + 1), rows, _train)
    measured = costs(experiments, rows)
    for name, row in found.items():
        for score in SCORES:
            row |= over_seeds(score, [one.get(score) for one in row["trained"]])
        each = [one["memory"] for one in row["trained"] if one.get("memory")]
        row["memory"] = {field: statistics.mean(one[field] for one in each) for field in (each or [{}])[0]}
        row |= measured[name]
    forget()
    return found


def costs(experiments: Mapping[str, Experiment], rows: Rows) -> dict[str, Row]:
    """Parameters, bytes, FLOPs and speeds of every model; of one sequence, states (bytes) and speeds by CONTEXTS.

    Only full attention's depend on the context. step_bytes is None where the backend does not say.
    """
    subjects, models = {}, dict[str, list[ModelConfig]]()
    for name, experiment in experiments.items():
        model, read = experiment.model, experiment.data.batch * experiment.data.sequence
        models[name] = [replace(model, context=context) for context in CONTEXTS] if model.grows else [model]
        subjects[f"step of {name}"] = Subject(step_timer, {"experiment": experiment}, read)
        for one in models[name]:
            facts = {"model": one, "context": 1}
            subjects[f"tokens of {name} at {one.context}"] = Subject(next_tokens, facts, WRITTEN)
    timed = interleave.run(Plan(subjects), rows, matmul=False).rows
    found: dict[str, Row] = {}
    for name, experiment in experiments.items():
        step = timed[f"step of {name}"]
        speeds = [timed[f"tokens of {name} at {one.context}"]["tokens_per_second"] for one in models[name]]
        repeated = len(CONTEXTS) // len(speeds)
        found[name] = {
            "parameters": parameters(experiment.model),
            "state_bytes": state_bytes(experiment.model),
            "flops_per_token": flops_per_token(experiment.model, experiment.data.sequence),
            "contexts": list(CONTEXTS),
            "states": [state_bytes(one) for one in models[name]] * repeated,
            "step_bytes": step.get("step_bytes"),
            "train_tokens_per_second": step["tokens_per_second"],
            "decode_tokens_per_second": speeds * repeated,
        }
    return found


def _train(experiment: Experiment, bar: metrics.Progress) -> Row:
    """One training: its scores at the end and along the way; the loss is None if they are not finite."""
    curve: dict[str, list[float]] = {name: [] for name in ("step", *SCORES)}
    memory, places = dict[str, float](), list[float]()
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


def tables(found: Mapping[str, Row], changed: Mapping[str, str]) -> str:
    """Tables in markdown: how well the models predict and what they cost, and the telemetry of their memories.

    changed: by model, the change that matched it.
    """
    contexts = [f"{context:,}" for context in next(iter(found.values()))["contexts"]]
    memories = {name: row["memory"] for name, row in found.items() if row["memory"]}
    rows = {name: row | {"changed": changed[name]} for name, row in found.items()}
    parts = [("Held-out text, and costs", table(rows, first="model"))]
    for title, field in (
        ("Bytes of state after so many tokens", "states"),
        ("Tokens a second of one sequence after so many tokens", "decode_tokens_per_second"),
    ):
        by_context = {name: dict(zip(contexts, row[field], strict=True)) for name, row in found.items()}
        parts.append((title, table(by_context, {context: (context, ",.0f") for context in contexts}, "model")))
    if memories:
        heads = {field: (field, ".4g") for field in next(iter(memories.values()))}
        title = "Memories in the last training step, means over layers, heads and tokens"
        parts.append((title, table(memories, heads, "model")))
    return "\n\n".join(f"{title}:\n\n{text}" for title, text in parts)
