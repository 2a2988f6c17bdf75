"""Titans 760M: 24 layers of width 1536, 30B tokens; 1,219M parameters with its memories."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    base = load("titans_340m")
    memory = replace(base.model.memory, heads=12, head_dim=128)
    return replace(
        base,
        name="titans_760m",
        model=replace(base.model, depth=24, dim=1536, heads=16, head_dim=96, memory=memory),
        optim=replace(base.optim, peak_rate=1.25e-3),
        train=replace(base.train, steps=57_200),
    )
