"""Half of tiny's width, depth and batch, for benchmarks of many trainings."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    memory = replace(tiny.model.memory, head_dim=16)
    model = replace(tiny.model, dim=64, depth=2, heads=2, memory=memory)
    data = replace(tiny.data, batch=4, facts=0.0)
    return replace(tiny, name="mini", model=model, data=data, train=replace(tiny.train, baseline=""))
