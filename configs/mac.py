"""MAC: memory as context, at the size of tiny."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    return replace(tiny, name="mac", model=replace(tiny.model, block="mac"))
