"""Titans 1.3B: 18 layers of width 2048, 100B tokens; 1,611M parameters with its memories."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    base = load("titans_340m")
    memory = replace(base.model.memory, heads=16, head_dim=128)
    return replace(
        base,
        name="titans_1_3b",
        model=replace(base.model, depth=18, dim=2048, heads=8, head_dim=256, memory=memory),
        optim=replace(base.optim, peak_rate=7e-4),
        train=replace(base.train, steps=190_700),
    )
