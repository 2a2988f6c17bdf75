"""Functional memories: networks that learn while they read. Imports jax alone."""

from titans_jax.memory import architecture, bias, features, functional, learner, presets, retention
from titans_jax.memory.api import IMPLEMENTATIONS, miras, unit_clip, unit_rate
from titans_jax.memory.presets import PRESETS
from titans_jax.memory.types import (
    Architecture,
    Bias,
    Gates,
    Info,
    Learner,
    Memory,
    Reset,
    Retention,
    Rule,
    State,
    Weights,
)

__all__ = [
    "IMPLEMENTATIONS",
    "PRESETS",
    "Architecture",
    "Bias",
    "Gates",
    "Info",
    "Learner",
    "Memory",
    "Reset",
    "Retention",
    "Rule",
    "State",
    "Weights",
    "architecture",
    "bias",
    "features",
    "functional",
    "learner",
    "miras",
    "presets",
    "retention",
    "unit_clip",
    "unit_rate",
]
