"""Functional memories: networks that learn while they read. Knows jax alone."""

from titans_jax.memory import architecture, bias, features, functional, learner, presets, retention
from titans_jax.memory.api import IMPLEMENTATIONS, miras, unit_rate
from titans_jax.memory.base import (
    Architecture,
    Bias,
    Gates,
    Info,
    Learner,
    Memory,
    Restart,
    Retention,
    Rule,
    Span,
    State,
    Weights,
    Window,
)
from titans_jax.memory.presets import PRESETS
from titans_jax.memory.scan import begin

__all__ = [
    "IMPLEMENTATIONS",
    "PRESETS",
    "Architecture",
    "Bias",
    "Gates",
    "Info",
    "Learner",
    "Memory",
    "Restart",
    "Retention",
    "Rule",
    "Span",
    "State",
    "Weights",
    "Window",
    "architecture",
    "begin",
    "bias",
    "features",
    "functional",
    "learner",
    "miras",
    "presets",
    "retention",
    "unit_rate",
]
