"""ATLAS: a memory with the Omega window, whose steps are orthogonalised once a chunk, at the size of tiny."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    memory = replace(tiny.model.memory, rule="atlas")
    return replace(tiny, name="atlas", model=replace(tiny.model, block="mag", memory=memory))
