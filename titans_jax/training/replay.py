"""A step of a run once more, from the checkpoint before it: what is not finite in it, and where that begins."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from titans_jax import data, metrics
from titans_jax.checkpoint import by_name
from titans_jax.config import Experiment
from titans_jax.training.model_io import checkpoints_of, confined, experiment_of
from titans_jax.training.placement import Placement
from titans_jax.training.step import TrainState, define, init_state, make_loss, make_step, optimizer_of


def find(folder: Path, n: int, *, rule: str = "") -> tuple[Experiment, int]:
    """The experiment of the run in an output folder, and the step of its checkpoint before step n; 0 for the start.

    The experiment is that checkpoint's, or where there is none that of a later one. rule: as `load`. Raises ValueError
    for a step that the run does not have, and as `load` does.
    """
    checkpoints = checkpoints_of(folder)
    before = max((step for step in checkpoints.steps() if step < n), default=0)
    experiment = confined(experiment_of(checkpoints.meta(before or "last"), folder), rule, folder)
    if n > experiment.train.steps:
        raise ValueError(f"step {n}: {folder} holds a run of {experiment.train.steps} steps")
    return experiment, before


def replay(folder: Path, experiment: Experiment, n: int, before: int) -> dict[str, Any]:
    """Take the steps after the checkpoint `before` again, up to n, with all their batches; what is found, to print.

    So a step after a rollback, or after options that changed since the checkpoint, is another than the run's.
    """
    checkpoints = checkpoints_of(folder)
    train, source, placement = experiment.train, experiment.data, Placement.of(experiment.mesh)
    model, optimizer = define(experiment.model), optimizer_of(experiment.model, experiment.optim, train.steps)
    batches = data.train_batches(source, seed=train.seed, start=before, rows=placement.rows(source.batch))
    with placement.active(), metrics.Progress(n - before, f"replaying {folder}", unit="steps") as bar:
        state = init_state(model, optimizer, placement, train.seed)
        if before:
            state = TrainState(**checkpoints.restore(state._asdict(), which=before)[0])
        step = make_step(model.graphdef, optimizer, train, experiment.optim.accumulation)
        for _ in range(before + 1, n):
            state, _ = step(state, placement.device_batch(next(batches), source))
            bar.advance()
        gradient = jax.jit(jax.grad(make_loss(model.graphdef, train), has_aux=True))
        gradients, (loss, _, info) = gradient(state.params, placement.device_batch(next(batches), source), None)
        found: dict[str, Any] = {"loss": float(loss), "gradient norm": float(optax.tree.norm(gradients))}
        bar.advance()
    wrong = {"parameters": _not_finite(state.params), "gradients": _not_finite(gradients)}
    found |= {f"not finite in {what}": names for what, names in wrong.items() if names}
    where = _first(info, experiment)
    return {"step": n, "from checkpoint": before or "none"} | found | ({"first in the memory": where} if where else {})


def _not_finite(tree: Any) -> str:
    """The names of the arrays that are not finite, at most three of them."""
    arrays = by_name(tree, "model")
    names = [name for name, array in arrays.items() if not np.isfinite(np.asarray(array)).all()]
    more = f" and {len(names) - 3} more of {len(arrays)}" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _first(info: Any, experiment: Experiment) -> str:
    """Where the memory's numbers [layers, B, H, T] stop being finite: the first layer, and its first token."""
    found = []
    for order, (path, values) in enumerate(jax.tree_util.tree_leaves_with_path(info)):
        spots = np.argwhere(~np.isfinite(np.moveaxis(np.asarray(values, np.float32), 3, 1)))
        found += [(*spots[0].tolist(), order, path)] if len(spots) else []
    if not found:
        return ""
    layer, token, row, head, _, path = min(found, key=lambda spot: spot[:5])
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    memory = experiment.model.memory
    chunk = f"chunk {token // memory.chunk} of rule {memory.rule}"
    return f"{name} in layer {layer}, row {row}, head {head}, token {token} ({chunk})"
