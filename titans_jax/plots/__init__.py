"""Pictures. Each function writes `path`, writes its numbers to a JSON file beside it, and returns the figure.

Needs matplotlib, the optional extra `plot`; without it every function raises ImportError. Only its object interface is
used: no window, no global state.
"""

from titans_jax.plots.animation import generation
from titans_jax.plots.attention import attention_maps, head_comparison, head_grid, layer_analysis
from titans_jax.plots.compare import compare_contexts, compare_costs, compare_curves, compare_places
from titans_jax.plots.memory import memory_activity, memory_picture, memory_updates
from titans_jax.plots.needle import haystack_picture, needle_ablations, needle_answers, needle_memory
from titans_jax.plots.speed import speed_bars, speed_lines
from titans_jax.plots.state import ablation_bars, memory_state, norms, positions_curve
from titans_jax.plots.style import available
from titans_jax.plots.surprise import learning_picture, surprise_dashboard, surprise_grid
from titans_jax.plots.training import loss_curve, recall_picture, stream_picture

__all__ = [
    "ablation_bars",
    "attention_maps",
    "available",
    "compare_contexts",
    "compare_costs",
    "compare_curves",
    "compare_places",
    "generation",
    "haystack_picture",
    "head_comparison",
    "head_grid",
    "layer_analysis",
    "learning_picture",
    "loss_curve",
    "memory_activity",
    "memory_picture",
    "memory_state",
    "memory_updates",
    "needle_ablations",
    "needle_answers",
    "needle_memory",
    "norms",
    "positions_curve",
    "recall_picture",
    "speed_bars",
    "speed_lines",
    "stream_picture",
    "surprise_dashboard",
    "surprise_grid",
]
