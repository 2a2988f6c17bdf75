"""How much a layer's memory matters: what a model predicts without it.

A part is cut out by parameters alone: zeros where its output is projected back, gates that write nothing and forget
nothing. The rest of the model runs on as it is, from the state that the whole model begins with.
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
    "learning": "the memory stays as it began: nothing is written, nothing forgotten",
    "reading": "what is read from the memory is zero",
    "context": "what MAC's attention is given from the memory is zero",
    "attention": "what attention gives is zero",
}
_PARAMETERS = {
    "learning": {
        r"memory/(rate|momentum|keep)/kernel": 0.0,
        r"memory/(rate|momentum)/bias": -1e9,
        r"memory/keep/bias": 1e9,
    },
    "reading": {r"memory/out/kernel": 0.0},
    "context": {r"retrieve/out/kernel": 0.0},
    "attention": {r"(attention/)?projections/out/kernel": 0.0},
}


def relevance(model: LM, batch: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """What it costs to do without each part of each layer, on one batch of held-out text.

    Returns for each of CUTS that the model has, by layer (None where that layer has no such part): divergence, the mean
    over tokens of KL(whole || cut) in nats; and loss, by how much the loss rises, in nats a token.
    """
    graphdef, params = nnx.split(model)
    tokens = jnp.asarray(batch["inputs"])
    whole = _log_probabilities(graphdef, params, params, tokens)
    found: dict[str, dict[str, list[float | None]]] = {}
    for cut in CUTS:
        rows = [without(params, cut, layer, model.config.pattern) for layer in range(model.config.depth)]
        if all(row is None for row in rows):
            continue
        found[cut] = {"divergence": [], "loss": []}
        for changed in rows:
            pair: Any = (None, None)
            if changed is not None:
                less = _log_probabilities(graphdef, changed, params, tokens)
                pair = map(float, _differences(whole, less, batch["targets"], batch["mask"]))
            for name, value in zip(found[cut], pair, strict=True):
                found[cut][name].append(value)
    return found


def without(params: Any, cut: str, layer: int, pattern: tuple[str, ...]) -> Any | None:
    """The parameters of a model with one of CUTS made in one layer; None where the layer has nothing to cut."""
    place, row, hits = layer % len(pattern), layer // len(pattern), []

    def one(path: tuple[Any, ...], x: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for part, value in _PARAMETERS[cut].items():
            if re.fullmatch(f"blocks/{place}/{part}", name):
                hits.append(name)
                return x.at[row].set(value)
        return x

    changed = jax.tree_util.tree_map_with_path(one, params)
    return changed if hits else None


@partial(jax.jit, static_argnums=0)
def _log_probabilities(graphdef: Any, params: Any, whole: Any, tokens: Array) -> Array:
    state = nnx.merge(graphdef, whole).init_state(len(tokens))
    return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens, state)[0])


@jax.jit
def _differences(whole: Array, less: Array, targets: np.ndarray, mask: np.ndarray) -> tuple[Array, Array]:
    divergence = (jnp.exp(whole) * (whole - less)).sum(-1)
    chosen = jnp.asarray(targets)[..., None]
    loss = jnp.take_along_axis(whole - less, chosen, -1)[..., 0]
    count = jnp.maximum(mask.sum(), 1)
    return (divergence * mask).sum() / count, (loss * mask).sum() / count
