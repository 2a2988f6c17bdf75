"""One training step as a pure function: gradient, update and metrics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from titans_jax import optim, sharding
from titans_jax.compiling import ONCE
from titans_jax.config import TrainConfig
from titans_jax.loss import cross_entropy
from titans_jax.metrics import layer_means
from titans_jax.nn import LM, ModelConfig
from titans_jax.nn.inner_loop import InnerLoop
from titans_jax.training.placement import Placement

Batch = Mapping[str, Array]


class TrainState(NamedTuple):
    """What a step changes, and what a checkpoint holds; the number of steps says which batch is next.

    params: the model's arrays by name. optimizer: optax' state. key: what the run's samples are drawn from.
    """

    params: Any
    optimizer: Any
    key: Array


class Definition(NamedTuple):
    """A model before it has arrays: `model(init(key))` is the model.

    init: key -> params, which may be compiled.
    shapes: of the params, as ShapeDtypeStructs.
    axes: the logical axes of each parameter, for `sharding`.
    """

    graphdef: Any
    init: Callable[[Array], Any]
    shapes: Any
    axes: Any

    def model(self, params: Any) -> Any:
        """The model with these parameters."""
        return nnx.merge(self.graphdef, params)


def define(config: Any, kind: Callable[..., nnx.Module] | None = None) -> Definition:
    """The model that a configuration describes, at no cost: nothing is computed.

    kind: kind(config, rngs=rngs) makes the model; None for the language model of a ModelConfig.
    """
    static = []
    make = kind or (InnerLoop if config.learns_inside else LM)

    def build(key: Array) -> Any:
        graphdef, params = nnx.split(make(config, rngs=nnx.Rngs(key)))
        axes = jax.tree.map(
            lambda x: x.get_metadata().get("axes", ()), params, is_leaf=lambda x: isinstance(x, nnx.Variable)
        )
        static.append((graphdef, axes))
        return nnx.to_pure_dict(params)

    shapes = jax.eval_shape(build, jax.random.key(0))
    graphdef, axes = static[0]
    return Definition(graphdef, build, shapes, nnx.to_pure_dict(axes))


def optimizer_of(model: ModelConfig, config: optim.OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, with a loss scale where activations are float16."""
    optimizer = optim.build(config, steps)
    return optim.loss_scaled(optimizer) if model.dtype == "float16" else optimizer


def init_state(
    definition: Definition, optimizer: optax.GradientTransformation, placement: Placement, seed: int
) -> TrainState:
    """The state before the first step, on its devices. Call it where the placement is active."""
    key = jax.device_put(jax.random.key(seed), placement.replicated)
    where = placement.params(definition.axes, definition.shapes)
    params = jax.jit(definition.init, out_shardings=where, compiler_options=ONCE)(key)
    return TrainState(params, jax.jit(optimizer.init)(params), key)


def make_loss(graphdef: Any, train: TrainConfig) -> Callable[[Any, Batch, Array | None], tuple[Array, Any]]:
    """`loss(params, batch, scale) -> scale * loss, (loss, sums, info)`; sums as `cross_entropy`, info the memory's."""

    def loss_of(params: Any, batch: Batch, scale: Array | None) -> tuple[Array, Any]:
        model = nnx.merge(graphdef, params)
        state = model.init_state(batch["inputs"].shape[0])
        logits, _, info = model(batch["inputs"], state, batch.get("reset"), aligned=True)
        loss, sums = cross_entropy(
            logits, batch["targets"], batch["mask"], label_smoothing=train.label_smoothing, z_loss=train.z_loss
        )
        return loss if scale is None else loss * scale, (loss, sums, info)

    return loss_of


def make_gradient(graphdef: Any, train: TrainConfig, parts: int = 1) -> Callable[[Any, Batch, Array | None], Any]:
    """`gradient(params, batch, scale) -> gradients, (loss, sums, means)`; means as `layer_means` of the memory's info.

    parts: the batch is taken in so many parts of B / parts rows, one after the other, which need less memory for
      activations. A part's loss counts by its share of the tokens' weights, so the gradient is that of the whole batch.
    """
    loss_of = make_loss(graphdef, train)

    def whole(params: Any, batch: Batch, scale: Array | None) -> Any:
        gradients, (loss, sums, info) = jax.grad(loss_of, has_aux=True)(params, batch, scale)
        return gradients, (loss, sums, layer_means(info))

    def in_parts(params: Any, batch: Batch, scale: Array | None) -> Any:
        weight = jnp.sum(batch["mask"])

        def add(total: Any, part: Batch) -> Any:
            share = jnp.sum(part["mask"]) / jnp.where(weight > 0, weight, 1)
            gradients, (loss, *others) = whole(params, part, share if scale is None else share * scale)
            return jax.tree.map(jnp.add, total, gradients), (share * loss, *others)

        zeros = jax.tree.map(jnp.zeros_like, params)
        gradients, (losses, sums, means) = lax.scan(add, zeros, jax.tree.map(lambda x: split_batch(x, parts), batch))
        sums = jax.tree.map(lambda x: jnp.sum(x, 0), sums)
        return gradients, (jnp.sum(losses), sums, jax.tree.map(lambda x: jnp.mean(x, 0), means))

    return whole if parts == 1 else in_parts


def split_batch(x: Array, parts: int) -> Array:
    """[B, T] -> [parts, B / parts, T]. Part i has the rows i, i + parts, ...: each device keeps its own rows."""
    shape = (x.shape[0] // parts, parts, x.shape[1])
    return jnp.reshape(x, shape, out_sharding=sharding.out(shape, "batch", None, None)).swapaxes(0, 1)


def make_step(
    graphdef: Any, optimizer: optax.GradientTransformation, train: TrainConfig, parts: int = 1
) -> jax.stages.Wrapped:
    """`step(state, batch) -> state, metrics`, compiled when it is called; the state given is used up.

    parts: see `make_gradient`. metrics: the scalars loss (what is minimised), nll (nats a token), accuracy and
    grad_norm, and memory: what the memory's info says, by layer. With train.not_finite "skip", a step whose loss or
    grad_norm is not finite returns the state as it was. With a loss scale there is loss_scale too, and grad_norm is 0
    where the gradient is not finite and a smaller scale is still to be tried.
    """

    gradient = make_gradient(graphdef, train, parts)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        scale = optax.tree.get(state.optimizer, "loss_scale")
        gradients, (loss, sums, means) = gradient(state.params, batch, scale)
        if scale is not None:
            gradients = jax.tree.map(lambda g: g / scale, gradients)
        update = sharding.automatic(optimizer.update, (state.params, state.optimizer))
        updates, optimizer_state = update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "nll": sums["nll"] / jnp.maximum(sums["tokens"], 1),
            "accuracy": sums["correct"] / jnp.maximum(sums["tokens"], 1),
            "memory": means,
        }
        if scale is not None:
            norm = metrics["grad_norm"]
            metrics |= {"loss_scale": scale, "grad_norm": jnp.where(jnp.isfinite(norm) | (scale <= 1), norm, 0)}
        after = TrainState(params, optimizer_state, state.key)
        if train.not_finite == "skip":
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            after = optax.tree.where(finite, after, state)
        return after, metrics

    return jax.jit(step, donate_argnums=0)
