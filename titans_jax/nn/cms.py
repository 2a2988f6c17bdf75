"""Continuum memory system: an MLP as a chain of networks that learn at their own pace (Nested Learning Eq 70-74).

Which kernels a level acts with is part of the state: the parameters as they are, or each sequence's own, which
`nn.inner_loop` writes at the end of each period. Inside a call they do not change.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array

from titans_jax.memory import Weights
from titans_jax.nn.config import ModelConfig
from titans_jax.nn.layers import RMSNorm, SwiGLU


class CMS(nnx.Module):
    """x + MLP_1(x), then + MLP_2 of that, and so on (Eq 71, 73); independent: x + sum_l MLP_l(x) (Eq 74).

    Together the levels are as large as the MLP whose place they take.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config.cms
        count, scale = len(config.cms.periods), (2 * config.depth) ** -0.5
        hidden = 8 * max(1, round(config.ff_mult * config.dim / 8 / count))
        self.norms = nnx.List([RMSNorm(config.dim) for _ in range(count)])
        self.levels = nnx.List(
            [SwiGLU(config.dim, hidden, dtype=config.dtype, scale=scale, rngs=rngs) for _ in range(count)]
        )

    def kernels(self, batch: int) -> tuple[Weights, ...]:
        """Each level's kernels [B, in, out] as a sequence begins; {} for one that stays as it was trained."""
        learns = [period > 0 and self.config.rate > 0 for period in self.config.periods]
        return tuple(level.spread(batch) if one else {} for level, one in zip(self.levels, learns, strict=True))

    def __call__(self, x: Array, kernels: tuple[Weights, ...]) -> Array:
        """x: [B, T, E], the stream, which the levels' outputs are added to."""
        first = x
        for norm, level, own in zip(self.norms, self.levels, kernels, strict=True):
            x = x + level(norm(first if self.config.variant == "independent" else x), own)
        return x


class CMSState(NamedTuple):
    """What a layer with a CMS carries. mixed: of the part that looks over time. kernels: per level, [B, in, out]."""

    mixed: Any
    kernels: tuple[Weights, ...]


def kernels_of(blocks: Iterable[Any]) -> list[list[Weights]]:
    """Out of the states of a model's blocks: for each level, the kernels [layers, B, in, out] of every block."""
    return [list(level) for level in zip(*(b.kernels for b in blocks if isinstance(b, CMSState)), strict=True)]


def with_kernels(blocks: tuple[Any, ...], levels: list[list[Weights]]) -> tuple[Any, ...]:
    """The same states with other kernels, in the form of `kernels_of`."""
    own = iter(zip(*levels, strict=True))
    return tuple(b._replace(kernels=tuple(next(own))) if isinstance(b, CMSState) else b for b in blocks)


def sequence_norm(level: list[Weights]) -> Array:
    """[B] Frobenius norm of each sequence's part of [layers, B, in, out] leaves, with a gradient at zero."""
    return jax.numpy.sqrt(sum(jax.numpy.square(x).sum((0, 2, 3)) for x in jax.tree.leaves(level)) + 1e-30)
