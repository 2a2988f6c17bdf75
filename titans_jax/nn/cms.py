"""Continuum memory system (CMS): an MLP as several MLPs, updated at test time with different periods.

Nested Learning Eq 70-74. A level that learns has a copy of its kernels for each sequence in the state. `nn.inner_loop`
updates them at the end of each period; a call of `CMS` does not change them.
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
    """A chain x <- x + MLP_l(x) for each level l (Eq 71, 73); "independent": x + sum_l MLP_l(x) (Eq 74).

    All levels together have the size of the MLP that they replace.
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
        """Each level's initial kernels [B, in, out]; {} for a level that does not learn at test time."""
        learns = [period > 0 and self.config.rate > 0 for period in self.config.periods]
        return tuple(level.kernels(batch) if one else {} for level, one in zip(self.levels, learns, strict=True))

    def __call__(self, x: Array, kernels: tuple[Weights, ...]) -> Array:
        """Add the levels' outputs to x [B, T, E]. kernels: as `kernels` returns them."""
        first = x
        for norm, level, level_kernels in zip(self.norms, self.levels, kernels, strict=True):
            x = x + level(norm(first if self.config.variant == "independent" else x), level_kernels)
        return x


class CMSState(NamedTuple):
    """The state of a layer with a CMS.

    mixed: the mixer's state.
    kernels: each level's, [B, in, out].
    """

    mixed: Any
    kernels: tuple[Weights, ...]


def kernels_of(blocks: Iterable[Any]) -> list[list[Weights]]:
    """For each level, the kernels [layers, B, in, out] of every block, out of the states of a model's blocks."""
    return [list(level) for level in zip(*(b.kernels for b in blocks if isinstance(b, CMSState)), strict=True)]


def with_kernels(blocks: tuple[Any, ...], levels: list[list[Weights]]) -> tuple[Any, ...]:
    """The states with these kernels, in the form of `kernels_of`."""
    by_block = iter(zip(*levels, strict=True))
    return tuple(b._replace(kernels=tuple(next(by_block))) if isinstance(b, CMSState) else b for b in blocks)


def sequence_norm(level: list[Weights]) -> Array:
    """The Frobenius norm [B] over all leaves [layers, B, in, out] and layers; 1e-30 makes it differentiable at zero."""
    return jax.numpy.sqrt(sum(jax.numpy.square(x).sum((0, 2, 3)) for x in jax.tree.leaves(level)) + 1e-30)
