"""Generation and endless streams, at constant cost per token and with a state of one size."""

from titans_jax.decode.generation import NotFinite, Stop, generate
from titans_jax.decode.rows import first_state, prefill, stream
from titans_jax.decode.sampling import Sampling, draw, filters, keep_min_p, keep_top_k, keep_top_p
from titans_jax.decode.slots import Request, serve
from titans_jax.decode.text import Text

__all__ = [
    "NotFinite",
    "Request",
    "Sampling",
    "Stop",
    "Text",
    "draw",
    "filters",
    "first_state",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "prefill",
    "serve",
    "stream",
]
