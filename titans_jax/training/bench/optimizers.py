"""Optimizers on one model and text: the rate tuned over the same grid for each, then fresh seeds, and a step's cost.

The rate is chosen on seed 0 by held-out loss; losses are of seeds 1, 2, ..., which the choice has not seen.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from titans_jax import data, metrics, sharding
from titans_jax.config import Experiment
from titans_jax.results import Column, Row, markdown
from titans_jax.training.bench.fit import fit, held_out, model_of, program, stepper
from titans_jax.training.bench.rows import Rows
from titans_jax.training.bench.tuning import at_edge, mean_and_spread, medians, trainings, tuned
from titans_jax.training.placement import Placement

REFERENCE = "muon"
"""Whose step counts as 1."""


def compare_optimizers(
    base: Experiment, names: Sequence[str], rates: Sequence[float], seeds: int, rows: Rows
) -> tuple[str, dict[str, Row]]:
    """Tune, train and time each optimizer; the table in markdown, and what it shows by optimizer.

    Raises ValueError for a name that is no optimizer.
    """
    experiments = {name: dataclasses.replace(base, optim=dataclasses.replace(base.optim, name=name)) for name in names}
    found = {}
    with metrics.progress(base.train.steps * len(names) * trainings(rates, seeds), "optimizers") as bar:
        for name, experiment in experiments.items():
            best, seen = tuned(rows, name, experiment, rates, seeds, bar, _row)
            found[name] = _summary(best, rates, [row["loss"] for row in seen])
    costs = rows.get(f"cost of {', '.join(names)}", lambda: step_costs(experiments, base))
    shown = {name: found[name] | costs[name] for name in names}
    return markdown(COLUMNS, shown, "optimizer"), shown


def _row(experiment: Experiment, bar: metrics.Progress) -> Row:
    """The held-out loss after training, None where it was not finite."""
    done = fit(experiment, bar)
    return {"loss": _held_out(experiment, model_of(done)) if done.finite else None}


def _held_out(experiment: Experiment, model: Any) -> float | None:
    loss: float = held_out(experiment, model).summary()["loss"]
    return loss if math.isfinite(loss) else None


def _summary(best: float, rates: Sequence[float], losses: Sequence[float | None]) -> Row:
    loss, spread = mean_and_spread(losses)
    return {"rate": best, "at_edge": at_edge(best, rates), "losses": list(losses), "loss": loss, "spread": spread}


def step_costs(experiments: dict[str, Experiment], base: Experiment) -> Row:
    """Seconds of a training step and of its update alone by optimizer, and their ratios to REFERENCE's.

    Every optimizer, the reference always among them, takes a block of steps in turn, the whole of M3's chunk, so that
    its slow step counts; the median block stands for each.
    """
    reference = dataclasses.replace(base, optim=dataclasses.replace(base.optim, name=REFERENCE))
    each = {REFERENCE: reference} | experiments
    placement = Placement.of(base.mesh)
    with placement.active():
        batch = placement.device_batch(next(data.train_batches(base.data, seed=0)), base.data)
        steps = {name: stepper(experiment, placement, batch) for name, experiment in each.items()}
        updates = {name: _updater(experiment, placement) for name, experiment in each.items()}
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


def _updater(experiment: Experiment, placement: Placement) -> Callable[[], Any]:
    parts = program(experiment)
    params, state, _ = parts.start(experiment, placement)
    update = jax.jit(sharding.automatic(parts.optimizer.update, (params, state)), donate_argnums=1)

    def step() -> Any:
        nonlocal state
        updates, state = update(params, state, params)  # what stands for a gradient is of no account to its time
        return updates

    return step


def _loss(row: Row) -> str:
    if row["loss"] is None:
        return "not finite"
    spread = "" if row["spread"] is None else f" +- {row['spread']:.4f}"
    return f"{row['loss']:.4f}{spread} ({len(row['losses'])})"


COLUMNS: list[Column] = [
    ("best rate", lambda row: f"{row['rate']:g}" + (", the grid's edge" if row["at_edge"] else "")),
    ("held-out loss (seeds)", _loss),
    (f"step over {REFERENCE}'s", lambda row: f"{row['step_cost']:.2f}"),
    (f"update over {REFERENCE}'s", lambda row: f"{row['update_cost']:.2f}"),
]
