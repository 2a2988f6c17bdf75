"""A loss scale that follows the gradients, for float16, which has no numbers below 6e-8 and none above 65,504."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class LossScaled(NamedTuple):
    """loss_scale: what the loss is multiplied by. since: finite steps since it changed. inner: the optimizer's."""

    loss_scale: Array
    since: Array
    inner: Any


def loss_scaled(
    inner: optax.GradientTransformation, *, start: float = 2.0**15, growth: int = 2000
) -> optax.GradientTransformation:
    """`inner`, for gradients of loss_scale times a loss that were divided by loss_scale (Micikevicius et al. 2018).

    A gradient that is not finite changes nothing but the scale, which it halves, to 1 at least; `growth` finite ones in
    a row double it.
    """

    def init(params: Any) -> LossScaled:
        return LossScaled(jnp.float32(start), jnp.int32(0), inner.init(params))

    def update(gradients: Any, state: LossScaled, params: Any = None) -> tuple[Any, LossScaled]:
        finite = jnp.isfinite(optax.tree.norm(gradients))
        updates, after = inner.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        after = optax.tree.where(finite, after, state.inner)
        since = jnp.where(finite, state.since + 1, 0)
        grown = jnp.where(since < growth, state.loss_scale, 2 * state.loss_scale)
        scale = jnp.where(finite, grown, jnp.maximum(state.loss_scale / 2, 1))
        return updates, LossScaled(scale, since % growth, after)

    return optax.GradientTransformation(init, update)
