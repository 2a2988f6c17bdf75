"""MAC: memory as context, what is read from it goes before each segment; tiny under its own name."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    return replace(tiny, name="mac", model=replace(tiny.model, block="mac"))
