"""`bench rules`: every rule of memory on the same text: the fall of its loss, its speed, the bytes of its state."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from titans_jax import config as configs
from titans_jax import metrics
from titans_jax.bench.counts import state_bytes
from titans_jax.bench.fit import fit, forget
from titans_jax.bench.report import Rows
from titans_jax.config import Experiment
from titans_jax.memory import PRESETS
from titans_jax.results import Column, Row, markdown

CONFIGS = ("hope", "tnt", "atlas")
"""Experiments that are more than a rule, compared too if configs/ has them."""


def default_rules() -> list[str]:
    """Every row of PRESETS, and config:NAME of those CONFIGS that there are."""
    return [*PRESETS, *(f"config:{name}" for name in CONFIGS if name in configs.available())]


def compare_rules(base: Experiment, names: Sequence[str], changes: Sequence[str], rows: Rows) -> str:
    """Train base with each rule, and each named config (config:NAME), for base.train.steps; the table in markdown.

    changes: `--section.field value` arguments, for configs (base has them already). A row that cannot be trained holds
    the reason. Raises ValueError for a name that is neither a rule nor a config.
    """
    experiments = {name: _experiment(base, name, changes) for name in names}
    done = sum(name in rows.rows for name in names)
    with metrics.Progress(base.train.steps * len(names), "rules", initial=base.train.steps * done) as bar:
        for name, experiment in experiments.items():
            rows.get(name, lambda experiment=experiment: _train(experiment, bar))  # type: ignore[misc]
            forget()
    return markdown(COLUMNS, {name: rows.rows[name] for name in names}, "rule")


def _experiment(base: Experiment, name: str, changes: Sequence[str]) -> Experiment:
    if name in PRESETS:
        return replace(base, name=name, model=replace(base.model, memory=replace(base.model.memory, rule=name)))
    if not name.startswith("config:"):
        raise ValueError(f"no rule named {name!r}; known are {', '.join(PRESETS)}, and config:NAME for a config")
    other = configs.override(configs.load(name.removeprefix("config:")), changes)
    return replace(other, train=replace(other.train, steps=base.train.steps))


def _train(experiment: Experiment, bar: metrics.Progress) -> Row:
    try:
        done = fit(experiment, bar)
    except (ValueError, NotImplementedError) as error:
        return {"error": " ".join(str(error).split())}
    last = statistics.mean(done.losses[-max(1, len(done.losses) // 20) :])
    return {
        "first_loss": done.losses[0],
        "final_loss": last if done.finite else None,
        "fall": 1 - last / done.losses[0] if done.finite else None,
        "finite": done.finite,
        "steps": len(done.losses),
        "tokens_per_second": done.tokens_per_second,
        "state_bytes": state_bytes(experiment.model, caches=False),
        "parameters": metrics.count(done.params),
    }


def _column(name: str, spec: str) -> Column:
    return name.replace("_", " "), lambda row: "-" if row.get(name) is None else format(row[name], spec)


COLUMNS: list[Column] = [
    _column("first_loss", ".3f"),
    _column("final_loss", ".3f"),
    _column("fall", ".1%"),
    ("finite", lambda row: row.get("error") or ("yes" if row["finite"] else f"no, at step {row['steps']}")),
    _column("tokens_per_second", ",.0f"),
    _column("state_bytes", ",d"),
    _column("parameters", ",d"),
]
