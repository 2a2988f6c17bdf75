"""`bench optimizers`: optimizers on one model and text, each at its best rate of one grid, and the cost of a step."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from titans_jax import metrics, sharding
from titans_jax.bench.fit import fit, held_out, model_of, program, stepper
from titans_jax.bench.interleave import medians
from titans_jax.bench.report import Rows
from titans_jax.bench.tuning import RATE, mean_cell, over_seeds, trainings, tuned
from titans_jax.config import Experiment
from titans_jax.results import Column, Row, markdown
from titans_jax.training.placement import Placement

REFERENCE = "muon"
"""The optimizer whose step counts as 1."""


def compare_optimizers(
    base: Experiment, names: Sequence[str], rates: Sequence[float], seeds: int, rows: Rows
) -> tuple[str, dict[str, Row]]:
    """Tune, train and time each optimizer; the table in markdown, and its numbers by optimizer.

    Raises ValueError for a name that is no optimizer.
    """
    experiments = {name: with_optimizer(base, name) for name in names}
    found = {}
    with metrics.Progress(base.train.steps * len(names) * trainings(rates, seeds), "optimizers") as bar:
        for name, experiment in experiments.items():
            found[name] = tuned(rows, name, experiment, rates, seeds, bar, _train)
            losses = [row["loss"] for row in found[name].pop("seeds")]
            found[name] |= {"losses": losses} | over_seeds("loss", losses)
    costs = rows.get(f"cost of {', '.join(names)}", lambda: step_costs(experiments, base))
    shown = {name: found[name] | costs[name] for name in names}
    return markdown(COLUMNS, shown, "optimizer"), shown


def with_optimizer(base: Experiment, name: str) -> Experiment:
    """The experiment with another optimizer."""
    return dataclasses.replace(base, optim=dataclasses.replace(base.optim, name=name))


def _train(experiment: Experiment, bar: metrics.Progress) -> Row:
    """The held-out loss after training; None if it is not finite."""
    done = fit(experiment, bar)
    return {"loss": _held_out(experiment, model_of(done)) if done.finite else None}


def _held_out(experiment: Experiment, model: Any) -> float | None:
    loss: float = held_out(experiment, model).summary()["loss"]
    return loss if math.isfinite(loss) else None


def step_costs(experiments: dict[str, Experiment], base: Experiment) -> Row:
    """Seconds of a training step and of its update alone by optimizer, and their ratios to REFERENCE's.

    A block of steps is as long as M3's chunk, so that its slow step counts.
    """
    each = {REFERENCE: with_optimizer(base, REFERENCE)} | experiments
    with Placement.of(base.mesh).active():
        steps = {name: stepper(experiment)[0] for name, experiment in each.items()}
        updates = {name: _updater(experiment) for name, experiment in each.items()}
        step = medians(steps, base.optim.chunk, "cost of steps")
        update = medians(updates, base.optim.chunk, "cost of updates")
    return {
        name: {
            "step_seconds": step[name],
            "update_seconds": update[name],
            "step_cost": step[name] / step[REFERENCE],
            "update_cost": update[name] / update[REFERENCE],
        }
        for name in experiments
    }


def _updater(experiment: Experiment) -> Callable[[], Any]:
    parts = program(experiment)
    params, state, _ = parts.start(experiment, Placement.of(experiment.mesh))
    update = jax.jit(sharding.automatic(parts.optimizer.update, (params, state)), donate_argnums=1)

    def step() -> Any:
        nonlocal state
        updates, state = update(params, state, params)  # its time does not depend on the gradient's values
        return updates

    return step


COLUMNS: list[Column] = [
    RATE,
    (
        "held-out loss (seeds)",
        lambda row: mean_cell(row, "loss", ".4f") + (f" ({len(row['losses'])})" if row["loss"] is not None else ""),
    ),
    (f"step over {REFERENCE}'s", lambda row: f"{row['step_cost']:.2f}"),
    (f"update over {REFERENCE}'s", lambda row: f"{row['update_cost']:.2f}"),
]
