"""MAC: memory as context; the same model as tiny."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    return replace(tiny, name="mac", model=replace(tiny.model, block="mac"))
