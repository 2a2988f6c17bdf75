"""Pictures, each with its numbers in a JSON file beside it.

Needs matplotlib, the optional extra `plot`. Only its object interface is used: no window, no global state.
"""

from titans_jax.plots.compare import compare_contexts, compare_costs, compare_curves, compare_places
from titans_jax.plots.haystack import haystack_picture
from titans_jax.plots.memory import memory_picture
from titans_jax.plots.surprise import surprise_dashboard, surprise_grid
from titans_jax.plots.training import loss_curve

__all__ = [
    "compare_contexts",
    "compare_costs",
    "compare_curves",
    "compare_places",
    "haystack_picture",
    "loss_curve",
    "memory_picture",
    "surprise_dashboard",
    "surprise_grid",
]
