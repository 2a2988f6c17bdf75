"""Functional memories: networks that learn while they read. Imports jax alone."""

from titans_jax.memory import architecture, bias, features, functional, learner, presets, retention
from titans_jax.memory.api import IMPLEMENTATIONS, miras, unit_rate
from titans_jax.memory.presets import PRESETS
from titans_jax.memory.series import SeriesMemory, SeriesRecord, SeriesState, series_memory, series_rule
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
    "SeriesMemory",
    "SeriesRecord",
    "SeriesState",
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
    "series_memory",
    "series_rule",
    "unit_rate",
]
