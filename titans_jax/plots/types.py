"""Types of the pictures' signatures. matplotlib is optional: without it they are Any, and modules still import."""

from typing import TYPE_CHECKING, Any

from titans_jax.files import Target

__all__ = ["Axes", "Figure", "Target"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any
