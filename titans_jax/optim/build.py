"""An optax transformation from an `OptimConfig`: clipping, optimizer, weight decay, learning rate."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from titans_jax.nearest import require_known
from titans_jax.optim.checks import require
from titans_jax.optim.deep import scale_by_deep_momentum, scale_by_delta_momentum
from titans_jax.optim.m3 import scale_by_m3

PyTree = Any


@dataclass(frozen=True)
class OptimConfig:
    """The configuration of the optimizer. A step is one batch, here and in `build`."""

    name: str = "adamw"
    """A name in OPTIMIZERS."""
    peak_rate: float = 1e-3
    """Learning rate at the end of the warm-up."""
    schedule: str = "cosine"
    """A name in SCHEDULES: the learning rate after the warm-up."""
    warmup: int = 100
    """Steps of the linear warm-up."""
    final_fraction: float = 0.1
    """Final learning rate divided by the peak (cosine, linear, wsd)."""
    decay_fraction: float = 0.2
    """Share of the steps after the warm-up in which wsd decays, at the end."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, times the learning rate; see `decays`."""
    b1: float = 0.9
    """Decay of the first moment; the momentum of sgd, muon, delta_momentum and deep_momentum."""
    b2: float = 0.95
    """Decay of the second moment."""
    b3: float = 0.9
    """Decay of m3's slow momentum."""
    alpha: float = 0.5
    """Weight of m3's slow momentum relative to the fast one."""
    chunk: int = 16
    """Updates between two updates of m3's slow momentum."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip: float | None = 1.0
    """Largest global norm of a gradient; None for no clipping."""
    accumulation: int = 1
    """Parts of a batch that a step takes one after the other; their gradients add up to the batch's."""

    def __post_init__(self) -> None:
        require_known("optim.name", self.name, OPTIMIZERS)
        require_known("optim.schedule", self.schedule, SCHEDULES)
        for field, value in vars(self).items():
            if field in ("peak_rate", "warmup", "weight_decay", "alpha"):
                require(f"optim.{field}", value, "0 or more", 0 <= value < math.inf)
            elif field in ("final_fraction", "decay_fraction"):
                require(f"optim.{field}", value, "between 0 and 1", 0 <= value <= 1)
            elif field in ("b1", "b2", "b3"):
                require(f"optim.{field}", value, "at least 0 and below 1", 0 <= value < 1)
            elif field in ("chunk", "accumulation"):
                require(f"optim.{field}", value, "1 or more", value >= 1)
        require("optim.eps", self.eps, "above 0", 0 < self.eps < math.inf)
        require("optim.clip", self.clip, "above 0, or None", self.clip is None or 0 < self.clip < math.inf)


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate at step t of a run of `steps` steps.

    rate(t) = peak_rate (t + 1) / (warmup + 1)                             t < warmup
    rate(t) = peak_rate f(u), u = (t - warmup) / (steps - warmup)          t >= warmup, f of SCHEDULES

    Raises ValueError: steps below 1.

    >>> rate = learning_rate(OptimConfig(peak_rate=1.0, warmup=1, schedule="linear", final_fraction=0.0), steps=5)
    >>> [float(rate(t)) for t in range(6)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    require("optim.steps", steps, "1 or more", steps >= 1)
    shape = SCHEDULES[config.schedule]

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((t - config.warmup) / max(steps - config.warmup, 1), 0, 1)
        warming_up = (t + 1) / (config.warmup + 1)
        return config.peak_rate * jnp.where(t < config.warmup, warming_up, shape(config, t, progress))

    return rate


def build(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` updates.

    params -= rate(t) (direction(clip(gradient)) + weight_decay params), with weight decay as `decays` says.
    Raises ValueError: steps below 1.
    """
    return optax.chain(
        optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        OPTIMIZERS[config.name](config),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def decays(params: PyTree) -> PyTree:
    """Which leaves have weight decay: a tree of bools like `params`.

    Leaves named `kernel` or `embedding` have it, unless a name above them contains `fast` (a memory's initial weights).
    The number of axes does not decide, since a bias of stacked layers has two.

    >>> decays({"proj": {"kernel": 0.0, "bias": 0.0}, "fast": {"kernel": 0.0}})
    {'fast': {'kernel': False}, 'proj': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_named(path, "kernel", "embedding"), params)


def _is_named(path: tuple[Any, ...], *names: str) -> bool:
    """Whether the leaf at the path has one of the names and is no fast weight."""
    parts = _parts(path)
    return bool(parts) and parts[-1] in names and not any("fast" in part for part in parts)


def _parts(path: tuple[Any, ...]) -> list[str]:
    # nnx.State keeps each array under its variable's `value`, a plain dict does not.
    return [part for part in jax.tree_util.keystr(path, simple=True, separator="/").split("/") if part != "value"]


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    """Muon for kernels, Adam for the rest, at the same learning rate (Liu et al. 2025, Eq 4)."""

    def axes(params: PyTree) -> PyTree:
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(-2, -1), params)

    def like_adam(updates: PyTree, _: PyTree) -> PyTree:
        return jax.tree.map(lambda u: 0.2 * math.sqrt(max(u.shape[-2:])) * u, updates)

    muon = optax.chain(
        contrib.scale_by_muon(beta=config.b1, eps=config.eps, weight_dimension_numbers=axes),
        optax.stateless(like_adam),
    )
    return _kernels_by("muon", muon, config)


def _m3(config: OptimConfig, **options: Any) -> optax.GradientTransformation:
    """M3 for kernels except the head's, Adam for the rest, at the same learning rate."""
    c = config
    m3 = scale_by_m3(c.b1, c.b2, c.b3, alpha=c.alpha, chunk=c.chunk, eps=c.eps, **options)
    return _kernels_by("m3", m3, config, exclude=("head",))


def _m3_literal(config: OptimConfig) -> optax.GradientTransformation:
    """Algorithm 1 as printed. Its update grows as the gradient shrinks, so it needs far smaller learning rates."""
    return _m3(config, mode="literal", second_moment="gradient", rms=None)


def _kernels_by(
    name: str, matrix: optax.GradientTransformation, config: OptimConfig, exclude: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """`matrix` for kernels [..., in, out] whose path has no name of `exclude`, Adam for the rest."""

    def label(path: tuple[Any, ...], leaf: jax.Array) -> str:
        is_matrix = _is_named(path, "kernel") and leaf.ndim >= 2 and not set(exclude) & set(_parts(path))
        return name if is_matrix else "adam"

    labels = functools.partial(jax.tree_util.tree_map_with_path, label)
    return optax.partition({name: matrix, "adam": _adam(config)}, labels)


def _adam(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _rsqrt(config: OptimConfig, t: jax.Array, progress: jax.Array) -> jax.Array:
    anchor = max(config.warmup, 1)
    return jnp.sqrt(anchor / jnp.maximum(t, anchor))


def _to_final(config: OptimConfig, remaining: jax.Array) -> jax.Array:
    return config.final_fraction + (1 - config.final_fraction) * remaining


Shape = Callable[[OptimConfig, jax.Array, jax.Array], jax.Array]
"""(config, step, progress after the warm-up in [0, 1]) -> rate / peak_rate."""

SCHEDULES: dict[str, Shape] = {
    "constant": lambda config, t, progress: jnp.ones_like(t),
    "cosine": lambda config, t, progress: _to_final(config, (1 + jnp.cos(jnp.pi * progress)) / 2),
    "linear": lambda config, t, progress: _to_final(config, 1 - progress),
    "rsqrt": _rsqrt,
    "wsd": lambda config, t, progress: _to_final(
        config, jnp.minimum(1, (1 - progress) / max(config.decay_fraction, 1e-6))
    ),
}

OPTIMIZERS: dict[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    "adamw": _adam,
    "deep_momentum": lambda config: _kernels_by("deep", scale_by_deep_momentum(config.b1), config),
    "delta_momentum": lambda config: _kernels_by("delta", scale_by_delta_momentum(config.b1), config),
    "lion": lambda config: optax.scale_by_lion(config.b1, config.b2),
    "m3": _m3,
    "m3_literal": _m3_literal,
    "muon": _muon,
    "sgd": lambda config: optax.trace(config.b1),
}
