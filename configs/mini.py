"""Half of the width, depth and batch of text, for benchmarks of many trainings."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    text = load("text")
    memory = replace(text.model.memory, head_dim=16)
    model = replace(text.model, dim=64, depth=2, heads=2, memory=memory)
    return replace(text, name="mini", model=model, data=replace(text.data, batch=4))
