"""`bench rules`, `optimizers` and `formal`: short trainings side by side."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from titans_jax import config as configs
from titans_jax import data, metrics, sharding
from titans_jax.bench import interleave
from titans_jax.bench.fit import fit, held_out, program, step_timer, train_all
from titans_jax.bench.interleave import Plan, Subject, device_timer
from titans_jax.bench.processes import Timer
from titans_jax.bench.report import Report, Rows, over_seeds
from titans_jax.config import Experiment
from titans_jax.evaluation import evaluate
from titans_jax.memory import PRESETS
from titans_jax.nearest import not_named
from titans_jax.results import Row
from titans_jax.training.counts import state_bytes
from titans_jax.training.placement import Placement
from titans_jax.training.step import init_state

CONFIGS = ("hope", "tnt", "atlas")
"""Experiments that are more than a rule, compared with the rules too."""
REFERENCE = "muon"
"""The optimizer whose step counts as 1."""

_DELTANET = ("--model.block", "lmm", "--model.memory.rule", "deltanet", "--model.memory.max-rate")
FORMAL_MODELS: dict[str, tuple[str, ...]] = {
    "hope": (),
    "hope-frozen": ("--model.memory.frozen",),
    "transformer": ("--model.block", "transformer"),
    "transformer-2": ("--model.block", "transformer", "--model.depth", "2"),
    "deltanet-flip": (*_DELTANET, "2"),
    "deltanet": (*_DELTANET, "1"),
}
"""The changes of each to the experiment that is compared.

To count modulo 2, a write must change the sign of what a memory holds under its key, which it multiplies by
keep - rate. The rate may reach 2 in deltanet-flip and in hope. Where it
reaches 1, deltanet can still do it, with a keep of 0.
HOPE writes with one key and rate to the memories that give keys and rates; in hope-frozen these are not written.
"""
KINDS = ("within", "beyond")


def rules(base: Experiment, names: Sequence[str] | None, changes: Sequence[str], rows: Rows) -> Report:
    """base trained with each rule, and each named config (config:NAME), for base.train.steps steps.

    names: None is every preset, and CONFIGS. changes: `--section.field value` arguments, for configs (base has them
    already). Raises ValueError or NotImplementedError for a name that is neither, and for what cannot be trained.
    """
    experiments = {}
    for name in names or (*PRESETS, *(f"config:{name}" for name in CONFIGS)):
        if name in PRESETS:
            experiments[name] = replace(base, model=replace(base.model, memory=replace(base.model.memory, rule=name)))
        elif name.startswith("config:"):
            other = configs.override(configs.load(name.removeprefix("config:")), changes)
            experiments[name] = replace(other, train=replace(other.train, steps=base.train.steps))
        else:
            raise not_named("rule", name, PRESETS, ", and config:NAME for a config")
    found = train_all(experiments, (), [base.train.seed], rows, _losses)
    return Report({name: row["trained"][0] for name, row in found.items()})


def _losses(experiment: Experiment, bar: metrics.Progress) -> Row:
    """The fall of the loss, from the first step to the mean of the last twentieth; None if it is not finite."""
    done = fit(experiment, bar)
    last = statistics.mean(done.losses[-max(1, len(done.losses) // 20) :])
    return {
        "first_loss": done.losses[0],
        "final_loss": last if done.finite else None,
        "fall": 1 - last / done.losses[0] if done.finite else None,
        "finite": "yes" if done.finite else f"no, at step {len(done.losses)}",
        "tokens_per_second": done.tokens / statistics.median(done.seconds[1:] or done.seconds),
        "state_bytes": state_bytes(experiment.model, caches=False),
        "parameters": metrics.count(done.params),
    }


def optimizers(base: Experiment, names: Sequence[str], rates: Sequence[float], seeds: int, rows: Rows) -> Report:
    """Each optimizer at its best rate, on seeds 1, 2, ...; a step and its update alone over REFERENCE's.

    A sample of steps is as long as M3's chunk, so that its slow step counts. Raises ValueError for a name that is no
    optimizer.
    """
    every = {name: replace(base, optim=replace(base.optim, name=name)) for name in (REFERENCE, *names)}
    found = train_all({name: every[name] for name in names}, rates, range(1, seeds + 1), rows, _held_out)
    costs: dict[str, Callable[..., Timer]] = {"step": step_timer, "update": _update_timer}
    facts = {name: {"experiment": experiment, "times": base.optim.chunk} for name, experiment in every.items()}
    subjects = {f"{what} of {name}": Subject(costs[what], facts[name]) for what in costs for name in every}
    pairs = {f"{what}_cost {name}": (f"{what} of {name}", f"{what} of {REFERENCE}") for what in costs for name in names}
    timed = interleave.run(Plan(subjects, pairs), rows, matmul=False).ratios
    for name, row in found.items():
        row |= over_seeds("loss", [trained["loss"] for trained in row.pop("trained")])
        row |= {f"{what}_cost": timed[f"{what}_cost {name}"]["times_wall"] for what in costs}
    return Report(found)


def _held_out(experiment: Experiment, bar: metrics.Progress) -> Row:
    """The held-out loss after training; None if it is not finite."""
    done = fit(experiment, bar)
    loss = held_out(experiment, done.model).summary()["loss"] if done.finite else math.nan
    return {"loss": loss if math.isfinite(loss) else None}


def _update_timer(experiment: Experiment, times: int) -> Timer:
    parts, placement = program(experiment), Placement.of(experiment.mesh)
    with placement.active():
        params, state, _ = init_state(parts.definition, parts.optimizer, placement, seed=0)
        update = jax.jit(sharding.automatic(parts.optimizer.update, (params, state)), donate_argnums=1)

    def step() -> Any:
        nonlocal state
        with placement.active():
            updates, state = update(params, state, params)  # its time does not depend on the gradient's values
        return updates

    return device_timer(step, times)


def formal(base: Experiment, names: Sequence[str], languages: Sequence[str], seeds: int, rows: Rows) -> Report:
    """Each model trained on each language, with seeds 0, 1, ..., and beside them always the commonest label.

    Accuracies are of labels on held-out words, within training's length and at as many positions beyond it.
    Raises ValueError for a name that is not in FORMAL_MODELS, or a language that is no task.
    """
    for name in names:
        if name not in FORMAL_MODELS:
            raise not_named("model", name, FORMAL_MODELS)
    experiments = {}
    for name in names:
        changed = configs.override(base, FORMAL_MODELS[name])
        model = replace(changed.model, context=2 * changed.data.sequence)
        for language in map(data.tasks.check_task, languages):
            source = replace(changed.data, task=language)
            experiments[f"{language}: {name}"] = replace(changed, data=source, model=model)
    shown = train_all(experiments, (), range(seeds), rows, _accuracies)
    for row in shown.values():
        trained = row.pop("trained")
        row |= {"each": ", ".join(f"{one['beyond']:.1%}" for one in trained), "parameters": trained[0]["parameters"]}
        for kind in KINDS:
            row |= over_seeds(kind, [one[kind] for one in trained])
    for language in languages:
        commonest = shown[f"{language}: always the commonest label"] = {}
        for kind in KINDS:
            words = _words(replace(base.data, task=language), kind, 8)
            labels = np.concatenate([batch["targets"][batch["mask"] != 0] for batch in words])
            commonest[kind] = float(np.unique(labels, return_counts=True)[1].max() / labels.size)
    return Report(shown)


def _accuracies(experiment: Experiment, bar: metrics.Progress) -> Row:
    """The accuracies of one training; 0 where its loss is not finite."""
    done = fit(experiment, bar)
    lengths, limit = data.load_tokenizer(experiment.data.tokenizer).byte_lengths, experiment.train.eval_batches
    row: Row = {"parameters": metrics.count(done.params)}
    for kind in KINDS:
        words = _words(experiment.data, kind, limit)
        row[kind] = evaluate(done.model, words, lengths)["accuracy"] if done.finite else 0.0
    return row


def _words(config: data.DataConfig, kind: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Held-out words of twice the length, masked to the labels within training's length or beyond it."""
    for batch in data.held_out_batches(replace(config, sequence=2 * config.sequence), limit=limit):
        batch["mask"][:, slice(config.sequence, None) if kind == "within" else slice(config.sequence)] = 0
        yield batch
