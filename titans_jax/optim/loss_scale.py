"""Dynamic loss scaling for float16, whose numbers lie between 6e-8 and 65,504."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class LossScaled(NamedTuple):
    """The state of `loss_scaled`.

    loss_scale: the factor of the loss.
    since: finite steps since its last change.
    inner: the optimizer's state.
    """

    loss_scale: Array
    since: Array
    inner: Any


def loss_scaled(
    inner: optax.GradientTransformation, *, start: float = 2.0**15, growth: int = 2000
) -> optax.GradientTransformation:
    """`inner` with a dynamic loss scale (Micikevicius et al. 2018).

    Gradients are of loss_scale times the loss, divided by loss_scale. A non-finite gradient halves the scale, to 1 at
    least, and changes nothing else. `growth` finite gradients in a row double it.
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
