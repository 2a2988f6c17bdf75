"""tiny on text without facts, for benchmarks: bits per byte of a language model, and nothing beside it."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    return replace(tiny, name="text", data=replace(tiny.data, facts=0.0), train=replace(tiny.train, baseline=""))
