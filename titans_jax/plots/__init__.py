"""Pictures, each with its numbers in a JSON file beside it.

Needs matplotlib, the optional extra `plot`. Only its object interface is used: no window, no global state.
"""

from titans_jax.plots.memory import memory_picture
from titans_jax.plots.needle import needle_ablations, needle_answers, needle_memory
from titans_jax.plots.training import loss_curve

__all__ = ["loss_curve", "memory_picture", "needle_ablations", "needle_answers", "needle_memory"]
