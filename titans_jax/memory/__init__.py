"""Functional memories: networks that learn while they read. Knows jax alone."""

from titans_jax.memory import architecture, bias, features, learner, presets, retention
from titans_jax.memory.api import IMPLEMENTATIONS, miras
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
    "bias",
    "features",
    "learner",
    "miras",
    "presets",
    "retention",
]
