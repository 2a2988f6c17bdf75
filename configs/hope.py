"""HOPE: self-modifying memories and a continuum memory system of two levels, at the size of tiny."""

from dataclasses import replace

from titans_jax.config import Experiment, load
from titans_jax.nn import CMSConfig


def get_config() -> Experiment:
    tiny = load("tiny")
    # The memories write each other's targets, so that large rates amplify rounding: a chunk of equal tokens is learned
    # in one step.
    memory = replace(tiny.model.memory, rule="dgd", chunk=32, max_rate=1 / 32, clip=0.05)
    cms = CMSConfig(periods=(64, 128), rate=0.01, first_order=True)
    return replace(tiny, name="hope", model=replace(tiny.model, block="hope", memory=memory, cms=cms))
