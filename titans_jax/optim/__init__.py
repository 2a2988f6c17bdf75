"""Optimizers of the parameters, as optax transformations."""

from titans_jax.optim.build import OPTIMIZERS, SCHEDULES, OptimConfig, build, decays, learning_rate
from titans_jax.optim.deep import (
    delta_gradient_descent,
    follow_the_regularised_leader,
    gradient_descent,
    momentum_descent,
    scale_by_deep_momentum,
    scale_by_delta_momentum,
)
from titans_jax.optim.loss_scale import LossScaled, loss_scaled
from titans_jax.optim.m3 import ScaleByM3State, m3, orthogonalise, scale_by_m3

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "LossScaled",
    "OptimConfig",
    "ScaleByM3State",
    "build",
    "decays",
    "delta_gradient_descent",
    "follow_the_regularised_leader",
    "gradient_descent",
    "learning_rate",
    "loss_scaled",
    "m3",
    "momentum_descent",
    "orthogonalise",
    "scale_by_deep_momentum",
    "scale_by_delta_momentum",
    "scale_by_m3",
]
