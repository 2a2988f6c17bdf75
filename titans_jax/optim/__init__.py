"""Optimisers for the outer training loop: optax transformations by name."""

from titans_jax.optim.build import OPTIMIZERS, SCHEDULES, OptimConfig, build, decays, learning_rate
from titans_jax.optim.m3 import ScaleByM3State, m3, orthogonalise, scale_by_m3

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "OptimConfig",
    "ScaleByM3State",
    "build",
    "decays",
    "learning_rate",
    "m3",
    "orthogonalise",
    "scale_by_m3",
]
