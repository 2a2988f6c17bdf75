"""How much a layer's memory matters: the predictions of a model without it.

A part is removed by parameters alone: zeros in its output projection, gates that write nothing and forget nothing. The
rest of the model runs unchanged, from the initial state of the whole model.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from titans_jax.nn import LM

CUTS = {
    "learning": "the memory stays at its initial weights: it writes and forgets nothing",
    "reading": "every read from the memory gives zero",
    "context": "MAC's attention gets zeros from the memory",
    "attention": "the attention's output is zero",
}
_PARAMETERS = {
    "learning": {
        r"memory/(gates/)?(rate|momentum|keep)/kernel": 0.0,
        r"memory/(gates/)?(rate|momentum)/bias": -1e9,
        r"memory/(gates/)?keep/bias": 1e9,
    },
    "reading": {r"memory/out/kernel": 0.0},
    "context": {r"retrieve/out/kernel": 0.0},
    "attention": {r"(attention/)?projections/out/kernel": 0.0},
}


def ablate(model: LM, batch: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Remove each part of each layer in turn, and compare the predictions on one batch of held-out text.

    Returns, for each of CUTS that the model has, a number for each layer, None where the layer has no such part:
      divergence: the mean over tokens of KL(whole || cut), in nats,
      loss: the increase of the loss, in nats per token.
    """
    graphdef, params = nnx.split(model)
    tokens = jnp.asarray(batch["inputs"])
    whole = _log_probabilities(graphdef, params, params, tokens)
    found: dict[str, dict[str, list[float | None]]] = {}
    for cut in CUTS:
        layers = [without(params, cut, layer, model.config.pattern) for layer in range(model.config.depth)]
        if all(layer is None for layer in layers):
            continue
        found[cut] = {"divergence": [], "loss": []}
        for changed in layers:
            pair: Any = (None, None)
            if changed is not None:
                ablated = _log_probabilities(graphdef, changed, params, tokens)
                pair = map(float, _differences(whole, ablated, batch["targets"], batch["mask"]))
            for name, value in zip(found[cut], pair, strict=True):
                found[cut][name].append(value)
    return found


def without(params: Any, cut: str, layer: int, pattern: tuple[str, ...]) -> Any | None:
    """The parameters of a model with one of CUTS made in one layer; None where the layer has no such part."""
    place, row, hits = layer % len(pattern), layer // len(pattern), []

    def replace(path: tuple[Any, ...], x: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for part, value in _PARAMETERS[cut].items():
            if re.fullmatch(f"blocks/{place}/{part}", name):
                hits.append(name)
                return x.at[row].set(value)
        return x

    changed = jax.tree_util.tree_map_with_path(replace, params)
    return changed if hits else None


def frozen(model: LM) -> LM:
    """The model whose memories do not learn: "learning" cut in all layers."""
    graphdef, params = nnx.split(model)
    for layer in range(model.config.depth):
        changed = without(params, "learning", layer, model.config.pattern)
        params = params if changed is None else changed
    return nnx.merge(graphdef, params)


@partial(jax.jit, static_argnums=0)
def _log_probabilities(graphdef: Any, params: Any, whole: Any, tokens: Array) -> Array:
    state = nnx.merge(graphdef, whole).init_state(len(tokens))
    return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens, state)[0])


@jax.jit
def _differences(whole: Array, ablated: Array, targets: np.ndarray, mask: np.ndarray) -> tuple[Array, Array]:
    """Means over the mask [B, T], of log probabilities [B, T, V]: the divergence, and the increase of the loss."""
    divergence = (jnp.exp(whole) * (whole - ablated)).sum(-1)
    loss = jnp.take_along_axis(whole - ablated, jnp.asarray(targets)[..., None], -1)[..., 0]
    count = jnp.maximum(mask.sum(), 1)
    return (divergence * mask).sum() / count, (loss * mask).sum() / count
