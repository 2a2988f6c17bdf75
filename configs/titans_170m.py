"""Titans 170M: 12 layers of width 768, 15B tokens; 195M parameters with its memories."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    base = load("titans_340m")
    memory = replace(base.model.memory, heads=6, head_dim=128)
    return replace(
        base,
        name="titans_170m",
        model=replace(base.model, depth=12, dim=768, heads=16, head_dim=48, memory=memory),
        optim=replace(base.optim, peak_rate=3e-3),
        train=replace(base.train, steps=28_600),
    )
