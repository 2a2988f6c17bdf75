"""Training: one pure step, the loop around it, and what a run leaves behind."""

from titans_jax.training.command import add_common, command, guard
from titans_jax.training.errors import Diverged, Stopped, memory_advice, stopping
from titans_jax.training.model_io import RELEASED, load
from titans_jax.training.step import TrainState, define, make_step
from titans_jax.training.trainer import run

__all__ = [
    "RELEASED",
    "Diverged",
    "Stopped",
    "TrainState",
    "add_common",
    "command",
    "define",
    "guard",
    "load",
    "make_step",
    "memory_advice",
    "run",
    "stopping",
]
