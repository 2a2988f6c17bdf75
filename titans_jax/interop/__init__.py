"""Weights of titans-pytorch 0.5.5, both ways: its neural memory, and a layer of its transformer without one."""

from titans_jax.interop.layer import layer_from_titans_pytorch, layer_to_titans_pytorch
from titans_jax.interop.memory import (
    NeuralMemoryWeights,
    from_titans_pytorch,
    memory_mlp,
    neural_memory,
    to_titans_pytorch,
)

__all__ = [
    "NeuralMemoryWeights",
    "from_titans_pytorch",
    "layer_from_titans_pytorch",
    "layer_to_titans_pytorch",
    "memory_mlp",
    "neural_memory",
    "to_titans_pytorch",
]
