"""Models of equal size, by parameters, bytes of state or FLOPs, as `counts` defines them.

Models are matched to the largest of them: for parameters and FLOPs by the hidden width of the layers' MLPs (`ff_mult`,
in steps of 8); for the state by the context of full attention, the window of sliding attention, or else (LMM, MAC) by
the heads' size in the memory.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from titans_jax import metrics
from titans_jax.config import Experiment
from titans_jax.nn import ModelConfig
from titans_jax.training.counts import flops_per_token, parameters, state_bytes

MATCHES = ("parameters", "state", "flops", "none")

Measure = Callable[[ModelConfig], float]


def matched(experiments: Mapping[str, Experiment], by: str) -> tuple[dict[str, Experiment], dict[str, str]]:
    """The experiments with models as equal as whole numbers allow, and the change of each in words.

    by: one of MATCHES. Raises ValueError for a model that nothing can match.
    """
    if by == "none":
        return dict(experiments), dict.fromkeys(experiments, "-")
    found, words, measures, target = {}, {}, dict[str, Measure](), 0.0
    with metrics.Progress(2 * len(experiments), f"matching {by}") as bar:
        for name, experiment in experiments.items():
            flops = functools.partial(flops_per_token, sequence=experiment.data.sequence)
            counts: dict[str, Measure] = {"parameters": parameters, "state": state_bytes, "flops": flops}
            measures[name] = functools.cache(counts[by])
            target = max(target, measures[name](experiment.model))
            bar.advance()
        for name, experiment in experiments.items():
            field, unit, start, turned = _dial(experiment.model, by)
            try:
                value = _nearest(lambda value: measures[name](turned(value)), start, target)  # noqa: B023
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            found[name] = replace(experiment, model=turned(value))
            words[name] = "-" if value == start else f"{field} {unit * start:,} -> {unit * value:,}"
            bar.advance()
    return found, words


def _dial(model: ModelConfig, by: str) -> tuple[str, int, int, Callable[[int], ModelConfig]]:
    """What is changed: its name, its unit, how many units it has, and the model with another number of them."""
    if by != "state":
        eights = round(model.ff_mult * model.dim / 8)
        return "hidden", 8, eights, lambda n: model if n == eights else replace(model, ff_mult=8 * n / model.dim)
    if model.attends:
        field = {"full": "context", "sliding": "window", "segmented": "segment"}[model.attention]
        return field, 1, getattr(model, field), lambda n: replace(model, **{field: n})
    memory = model.memory
    return "memory.head_dim", 1, memory.head_dim, lambda n: replace(model, memory=replace(memory, head_dim=n))


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
