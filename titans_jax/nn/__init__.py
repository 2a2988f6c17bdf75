"""The language model and its blocks, as flax.nnx modules. States are plain pytrees."""

from titans_jax.nn.config import CMSConfig, MemoryConfig, ModelConfig
from titans_jax.nn.introspect import Attended, Introspection, Remembered
from titans_jax.nn.layer import LayerState, MemoryLayer
from titans_jax.nn.memory_state import LayerInfo, MemoryState
from titans_jax.nn.model import BLOCKS, LM, LMState

__all__ = [
    "BLOCKS",
    "Attended",
    "CMSConfig",
    "Introspection",
    "LM",
    "LMState",
    "LayerInfo",
    "LayerState",
    "MemoryConfig",
    "MemoryLayer",
    "MemoryState",
    "ModelConfig",
    "Remembered",
]
