"""Models of equal size, by parameters, bytes of state or FLOPs, as `counts` defines them.

Models are matched to the largest of them: for parameters and FLOPs by the hidden width of the layers' MLPs (`ff_mult`,
in steps of 8); for the state by the context of full attention, the window of sliding attention, or else (LMM, MAC) by
the heads' size in the memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from titans_jax import metrics
from titans_jax.bench.counts import flops_per_token, parameters, state_bytes
from titans_jax.config import Experiment
from titans_jax.nn import ModelConfig

MATCHES = ("parameters", "state", "flops", "none")

Dial = tuple[str, int, Callable[[int], ModelConfig]]


def matched(experiments: Mapping[str, Experiment], by: str) -> tuple[dict[str, Experiment], dict[str, str]]:
    """The experiments with models as equal as whole numbers allow, and the change of each in words.

    by: one of MATCHES. Raises ValueError for another name, and for a model that nothing can match.
    """
    if by not in MATCHES:
        raise ValueError(f"match is {by!r}; it must be one of {', '.join(MATCHES)}")
    if by == "none":
        return dict(experiments), dict.fromkeys(experiments, "-")
    measures = {name: _measure(by, experiment) for name, experiment in experiments.items()}
    found, words = {}, {}
    with metrics.Progress(2 * len(experiments), f"matching {by}") as bar:
        target = 0.0
        for name, experiment in experiments.items():
            target = max(target, measures[name](experiment.model))
            bar.advance()
        for name, experiment in experiments.items():
            try:
                model, words[name] = _turned(experiment.model, by, measures[name], target)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            found[name] = dataclasses.replace(experiment, model=model)
            bar.advance()
    return found, words


def _turned(
    model: ModelConfig, by: str, measure: Callable[[ModelConfig], float], target: float
) -> tuple[ModelConfig, str]:
    """The model nearest the target, and the change in words."""
    field, start, turned = _reach(model) if by == "state" else _width(model)
    value = _nearest(lambda value: measure(model if value == start else turned(value)), start, target)
    if value == start:
        return model, "-"
    unit = 8 if field == "hidden" else 1
    return turned(value), f"{field} {unit * start:,} -> {unit * value:,}"


def _measure(by: str, experiment: Experiment) -> Callable[[ModelConfig], float]:
    def flops(model: ModelConfig) -> float:
        return flops_per_token(model, experiment.data.sequence)

    counts: dict[str, Callable[[ModelConfig], float]] = {"parameters": parameters, "state": state_bytes, "flops": flops}
    return functools.cache(counts[by])


def _nearest(measure: Callable[[int], float], start: int, target: float) -> int:
    """The integer whose measure, which grows with it, is nearest the target; by secants from `start`."""
    (last, before), (value, here) = (start + 1, None), (start, measure(start))
    while here != target:
        before = measure(last) if before is None else before
        if before == here:
            raise ValueError("nothing that could be changed changes it; leave it out, or give another --match")
        step = round((target - here) * (value - last) / (here - before))
        if step == 0:
            break
        last, before, value = value, here, value + step
        here = measure(value)
    return value


def _width(model: ModelConfig) -> Dial:
    """The hidden width of the layers' MLPs, by eights."""
    start = round(model.ff_mult * model.dim / 8)
    return "hidden", start, lambda eights: dataclasses.replace(model, ff_mult=8 * eights / model.dim)


def _reach(model: ModelConfig) -> Dial:
    """The length of attention's cache, or the head size of a memory without attention."""
    if model.attends:
        field = {"full": "context", "sliding": "window", "segmented": "segment"}[model.attention]
        return field, getattr(model, field), lambda slots: dataclasses.replace(model, **{field: slots})
    memory = model.memory

    def turned(size: int) -> ModelConfig:
        return dataclasses.replace(model, memory=dataclasses.replace(memory, head_dim=size))

    return "memory.head_dim", memory.head_dim, turned
