"""A MAC of the size of tiny on text without facts, for benchmarks."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    model, data = replace(tiny.model, block="mac"), replace(tiny.data, facts=0.0)
    return replace(tiny, name="text", model=model, data=data, train=replace(tiny.train, baseline=""))
