"""The configuration of a needle experiment; every field is an option of `titans-jax needle`."""

import inspect
from dataclasses import dataclass
from typing import Literal

from titans_jax.data import check_seed
from titans_jax.memory import PRESETS
from titans_jax.nn import MemoryConfig, ModelConfig


@dataclass(frozen=True)
class NeedleConfig:
    """Titan-Min, its samples, and its training. Raises ValueError for a field that is out of its range."""

    dim: int = 256
    """model width"""
    heads: int = 8
    """attention heads, of size dim / heads"""
    layers: int = 2
    """blocks"""
    memory_slots: int = 4
    """learned queries to the memory; its answers are context in front of each segment"""
    memory_dim: int = 128
    """size of the memory's keys and values, over all its heads"""
    memory_heads: int = 2
    """heads of the memory"""
    memory_rule: str = "titans"
    """how the memory learns: a name in titans_jax.memory.PRESETS"""
    segment_size: int = 64
    """tokens of a segment: attention stays inside it, and the memory's gradients are taken at its start"""
    n_persistent: int = 8
    """learned tokens in front of each segment; 0 for none"""
    surprise_threshold: float = 0.8
    """a token is written where the memory's error is at least this share of the norm of its value"""
    memory_lr: float = 1.0
    """the memory's largest rate; at 1 it learns a single token in one step; rates start at 1 / segment_size of it"""
    memory: bool = True
    """the memory; without it only the convolutions connect segments"""
    dsconv: bool = True
    """causal depthwise convolutions after the projections to queries, keys and values"""
    l2: bool = True
    """cosine attention: queries and keys of unit length"""
    activation: Literal["silu", "relu"] = "silu"
    """activation of the attention's queries, keys and values"""
    head: Literal["point", "classify", "regress"] = "point"
    """the output: a score for each token; or, from the last token's state alone, a class or a number"""
    lengths: tuple[int, ...] = (64, 128, 256)
    """tokens of a sample, each equally likely"""
    samples: tuple[int, int, int] = (8000, 1000, 1000)
    """to train, to validate, to test"""
    data_seed: int = 42
    """seed of the samples"""
    epochs: int = 4
    """how often every training sample is read"""
    batch: int = 32
    """samples per step, all of one length"""
    learning_rate: float = 3e-3
    """peak rate of AdamW"""
    seed: int = 0
    """seed of the initial weights and of the order of the samples"""

    def __post_init__(self) -> None:
        counts = ("dim", "heads", "layers", "memory_dim", "memory_heads", "segment_size", "epochs", "batch")
        for name in (*counts, "memory_lr", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)}; it must be above 0")
        for name in ("memory_slots", "n_persistent", "surprise_threshold"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; it must be 0 or more")
        for name in ("data_seed", "seed"):
            check_seed(name, getattr(self, name))
        if self.memory_rule not in PRESETS:
            raise ValueError(f"memory_rule: {self.memory_rule!r}; it must be one of {', '.join(PRESETS)}")
        for whole, part in (("dim", "heads"), ("memory_dim", "memory_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole}: {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}")
        if not self.lengths or min(self.lengths) < 1 or len(self.samples) != 3 or min(self.samples) < 1:
            raise ValueError(f"lengths {self.lengths} and samples {self.samples}: each number must be at least 1")

    @property
    def model(self) -> ModelConfig:
        """The configuration of the library's layers."""
        network = "expansion" in inspect.signature(PRESETS[self.memory_rule]).parameters
        memory = MemoryConfig(
            rule=self.memory_rule,
            heads=self.memory_heads,
            head_dim=self.memory_dim // self.memory_heads,
            chunk=self.segment_size,
            expansion=2 if network else None,
            conv=4 if self.dsconv else 0,
            clip=0.25,  # a norm of 1 at the default sizes
            relative_read=False,  # the surprise is the error of M(k) itself
            sized_values=False,
        )
        return ModelConfig(
            dim=self.dim,
            depth=self.layers,
            heads=self.heads,
            head_dim=self.dim // self.heads,
            segment=self.segment_size,
            persistent=self.n_persistent,
            context=max(self.lengths),
            memory=memory,
        )
