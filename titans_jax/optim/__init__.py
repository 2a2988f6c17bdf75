"""Optimisers for the outer training loop: optax transformations by name."""

from titans_jax.optim.build import OPTIMIZERS, SCHEDULES, OptimConfig, build, decays, learning_rate

__all__ = ["OPTIMIZERS", "SCHEDULES", "OptimConfig", "build", "decays", "learning_rate"]
