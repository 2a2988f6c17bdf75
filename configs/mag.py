"""MAG: memory as gate, with sliding-window attention; the same model as tiny."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    return replace(tiny, name="mag", model=replace(tiny.model, block="mag"))
