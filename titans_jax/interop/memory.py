"""Weights of titans-pytorch's NeuralMemory, both ways, and the same layer computed by `titans_jax.memory`.

Weights are exchanged as NumPy arrays; torch is not imported here:

    weights = from_titans_pytorch({name: tensor.numpy() for name, tensor in module.state_dict().items()})
    state = {name: torch.from_numpy(array) for name, array in to_titans_pytorch(weights).items()}
    module.load_state_dict(state, assign=True)  # copying fails: a new module's heads are views of one array

titans-pytorch 0.5.5 computes the paper's recurrence: each token writes, then reads, and gradients are taken at the end
of the last whole batch of tokens (its `batch_size` is our chunk). This holds if it is built as

    NeuralMemory(dim, heads=H, dim_head=dim // H, chunk_size=1, batch_size=chunk, model=MemoryMLP(dim // H, depth, 4.0),
        default_step_transform_max_lr=rate_max)

with any of `activation=SiLU()` or none, `momentum`, `qk_rmsnorm`, `pre_rmsnorm`, `post_rmsnorm` and
`mem_model_norm_add_residual`; the state dict shows which. Not supported: other activations and memories, gates shared
by several tokens (chunk_size above 1), several momenta or keys per token, modulated rates, clamped gradients, residual
weights. Its default loss (no `store_memory_loss_fn`) is a mean over a head's features: our `rate_max` is then theirs
divided by dim // H. The paper is activation=SiLU(), qk_rmsnorm=True with both gammas at (dim // H)**-0.5 - 1 (unit
vectors), no other norm and `store_memory_loss_fn=lambda p, t: (p - t).pow(2).sum(-1)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from titans_jax.memory import Architecture, Gates, Rule, Weights, bias, learner, miras, retention
from titans_jax.memory.architecture import gelu
from titans_jax.memory.types import Linear


class Dense(NamedTuple):
    """x @ kernel + bias. kernel: [in, out]; bias: [out]."""

    kernel: Array
    bias: Array


class NeuralMemoryWeights(NamedTuple):
    """The weights of one NeuralMemory with H heads of size D; matrices are [in, out]; None for a part it lacks.

    query, key, value: [dim, H D].
    rate, momentum, forget: [dim, H] and [H], before the sigmoid; keep is 1 - sigmoid(forget).
    memory: the initial weights, w1, ..., w_depth, each [H, in, out]; with a residual norm also gamma [H, 1, D].
    template: the same without H; the torch module has it and never uses it.
    query_gamma, key_gamma, output_gamma: [H, D], the gain of the RMS norm minus one.
    read_norm, write_norm: [dim], the gain of the RMS norm of the inputs of reads and of writes.
    gate, combine: [dim, H] and [H D, dim], with more than one head.
    """

    query: Array
    key: Array
    value: Array
    rate: Dense
    forget: Dense
    memory: Weights
    template: Weights
    momentum: Dense | None = None
    query_gamma: Array | None = None
    key_gamma: Array | None = None
    output_gamma: Array | None = None
    read_norm: Array | None = None
    write_norm: Array | None = None
    gate: Array | None = None
    combine: Array | None = None


_PROJECTIONS = {"query": "to_queries", "key": "to_keys", "value": "to_values"}
_GATES = {"rate": "to_adaptive_step.0", "momentum": "to_momentum.0", "forget": "to_decay_factor.0"}
_GAMMAS = {"query_gamma": "q_norm.gamma", "key_gamma": "k_norm.gamma", "output_gamma": "multihead_rmsnorm.gamma"}
_NORMS = {"read_norm": "retrieve_norm.weight", "write_norm": "store_norm.weight"}
_HEADS = {"gate": "retrieve_gate.0.weight", "combine": "combine_heads.weight"}


def memory_mlp(sizes: Sequence[int], residual: bool = False) -> Architecture:
    """M(x) = gelu(... gelu(x W_1) ...) W_depth, exact gelu; with a residual x + (1 + gamma) LN(of that), LN's eps 1e-5.

    W_i: [sizes[i-1], sizes[i]]; gamma: [1, sizes[-1]], the weight of a constant input.

    >>> memory_mlp([4, 16, 4]).init(jax.random.key(0))["w1"].shape
    (4, 16)
    """
    names = [f"w{i}" for i in range(1, len(sizes))]

    def init(key: Array) -> Weights:
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(names))
        shapes = zip(sizes[:-1], sizes[1:], strict=True)
        weights = {name: draw(k, shape) for name, k, shape in zip(names, keys, shapes, strict=True)}
        return weights | ({"gamma": jnp.zeros((1, sizes[-1]))} if residual else {})

    def apply(linear: Linear, x: Array) -> Array:
        h = linear(names[0], x)
        for name in names[1:]:
            h = linear(name, gelu(h))
        if not residual:
            return h
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-5)
        return x + h * (1 + linear("gamma", jnp.ones_like(x[..., :1])))

    return Architecture(init, apply, {names[-1]: "out"} | {names[0]: "in"})


def from_titans_pytorch(state: Mapping[str, np.ndarray]) -> NeuralMemoryWeights:
    """Read the state dict of a NeuralMemory, as NumPy arrays in their own precision.

    The state dict does not have the loss, the largest rate or batch_size: see the module's docstring.
    Raises ValueError if the arrays are not those of a NeuralMemory in one of the configurations there.
    """
    _check(state)
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in state.items()}
    suffix = "" if "to_queries.weight" in arrays else ".0"
    fields: dict[str, Any] = {field: arrays[f"{name}{suffix}.weight"].T for field, name in _PROJECTIONS.items()}
    for field, name in _GATES.items():
        if f"{name}.weight" in arrays:
            fields[field] = Dense(arrays[f"{name}.weight"].T, arrays[f"{name}.bias"])
    fields |= {field: arrays[name][:, 0] for field, name in _GAMMAS.items() if name in arrays}
    fields |= {field: arrays[name] for field, name in _NORMS.items() if name in arrays}
    fields |= {field: arrays[name].T for field, name in _HEADS.items() if name in arrays}
    for field, names in zip(("memory", "template"), _networks(arrays), strict=True):
        network = {f"w{i}": arrays[name] for i, name in enumerate(names["weights"], 1)}
        gamma = {"gamma": arrays[names["gamma"][0]][..., None, :]} if names["gamma"] else {}
        fields[field] = network | gamma
    return NeuralMemoryWeights(**fields)


def to_titans_pytorch(weights: NeuralMemoryWeights, *, activation: bool = True) -> dict[str, np.ndarray]:
    """Write the state dict that `from_titans_pytorch` reads: its exact inverse, for `load_state_dict(strict=True)`.

    activation: whether the module has one; torch names the projections accordingly.
    Raises ValueError if the weights' shapes do not fit together.
    """
    suffix = ".0" if activation else ""
    state = {f"{name}{suffix}.weight": getattr(weights, field).T for field, name in _PROJECTIONS.items()}
    for field, name in _GATES.items():
        if (gate := getattr(weights, field)) is not None:
            state |= {f"{name}.weight": gate.kernel.T, f"{name}.bias": gate.bias}
    for fields, change in ((_GAMMAS, lambda x: x[:, None]), (_NORMS, lambda x: x), (_HEADS, lambda x: x.T)):
        state |= {name: change(x) for field, name in fields.items() if (x := getattr(weights, field)) is not None}
    residual = "gamma" in weights.memory
    depth = len(weights.memory) - residual
    inside = "memory_model.model.weights" if residual else "memory_model.weights"
    for i in range(depth):
        state[f"memory_model_parameters.{i + residual}"] = weights.memory[f"w{i + 1}"]
        state[f"{inside}.{i}"] = weights.template[f"w{i + 1}"]
    if residual:
        state["memory_model_parameters.0"] = weights.memory["gamma"][:, 0]
        state["memory_model.norm.gamma"] = weights.template["gamma"][0]
    arrays = {name: np.array(array, order="C") for name, array in state.items()}  # torch needs writable memory
    _check(arrays)
    return arrays


def neural_memory(
    weights: NeuralMemoryWeights, x: Array, *, chunk: int, rate_max: float, activation: bool = True
) -> Array:
    """What NeuralMemory returns for whole sequences (Titans Eq 11-15, gradients at the chunk's start, Eq 16-18).

    q, k = norm(silu(x W)), v = silu(x W_V), without silu if not `activation`; rate = rate_max sigmoid(.); the loss is
    ||M(k) - v||^2, summed over features. The heads' reads are normalised, scaled by sigmoid(x gate), and mixed by
    combine; a single head is returned unchanged. A norm without weights is left out.
    x: [B, T, dim].
    chunk: their batch_size.
    rate_max: their default_step_transform_max_lr, divided by D for their own loss.
    Returns [B, T, dim]. Raises ValueError if x or chunk do not fit.
    """
    heads = weights.rate.bias.shape[0]
    head = weights.query.shape[1] // heads
    if x.ndim != 3 or x.shape[-1] != weights.query.shape[0]:
        raise ValueError(f"neural_memory: x has shape {x.shape}; it must be [batch, tokens, {weights.query.shape[0]}]")
    reads, writes = (x if gain is None else _rms(x) * gain for gain in (weights.read_norm, weights.write_norm))

    def split(x: Array, kernel: Array) -> Array:
        y = x @ kernel
        return (jax.nn.silu(y) if activation else y).reshape(*x.shape[:2], heads, head)

    def gate(dense: Dense, sign: float = 1.0) -> Array:
        return jax.nn.sigmoid(sign * (writes @ dense.kernel + dense.bias))

    def normalised(x: Array, gamma: Array | None) -> Array:
        return x if gamma is None else _rms(x) * (1.0 + gamma)

    q = normalised(split(reads, weights.query), weights.query_gamma)
    k = normalised(split(writes, weights.key), weights.key_gamma)
    rate = rate_max * gate(weights.rate)
    momentum = jnp.zeros_like(rate) if weights.momentum is None else gate(weights.momentum)
    gates = Gates(rate, momentum, gate(weights.forget, -1.0))
    residual = "gamma" in weights.memory
    sizes = [head, *(weights.memory[f"w{i + 1}"].shape[-1] for i in range(len(weights.memory) - residual))]
    rule = Rule(memory_mlp(sizes, residual), bias.l2(), retention.decay(), learner.momentum())
    memory = miras(rule, chunk=chunk, clip=None)

    def one_head(start: Weights, q: Array, k: Array, v: Array, gates: Gates) -> Array:
        return memory.update(memory.init(start), q, k, v, gates)[0]

    each_head = jax.vmap(one_head, in_axes=(0, 1, 1, 1, 1), out_axes=1)
    rows = jax.vmap(each_head, in_axes=(None, 0, 0, 0, 0))
    y = normalised(rows(weights.memory, q, k, split(writes, weights.value), gates), weights.output_gamma)
    if weights.gate is None or weights.combine is None:
        return y[:, :, 0]
    y = y * jax.nn.sigmoid(reads @ weights.gate)[..., None]
    return y.reshape(*x.shape[:2], heads * head) @ weights.combine


def _rms(x: Array) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, eps the precision's own as torch has it."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + jnp.finfo(x.dtype).eps)


def _networks(arrays: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The names of the memory's arrays, and of the template's, in torch's order: a residual norm is first."""
    count = sum(name.startswith("memory_model_parameters.") for name in arrays)
    names = [f"memory_model_parameters.{i}" for i in range(count)]
    if "memory_model.norm.gamma" not in arrays:
        return {"gamma": [], "weights": names}, {
            "gamma": [],
            "weights": [f"memory_model.weights.{i}" for i in range(count)],
        }
    template = [f"memory_model.model.weights.{i}" for i in range(count - 1)]
    return {"gamma": names[:1], "weights": names[1:]}, {"gamma": ["memory_model.norm.gamma"], "weights": template}


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Compare every name and shape with those of the configuration that the names imply."""
    suffix = "" if "to_queries.weight" in arrays else ".0"
    for name in ("to_adaptive_step.0.weight", f"to_queries{suffix}.weight", "memory_model_parameters.0"):
        if name not in arrays or arrays[name].ndim < 2:
            raise ValueError(f"the state dict needs {name}: it must be of a NeuralMemory with parameters per head")
    heads, dim = arrays["to_adaptive_step.0.weight"].shape
    head = arrays[f"to_queries{suffix}.weight"].shape[0] // heads
    wanted: dict[str, tuple[int, ...]] = {
        f"{name}{suffix}.weight": (heads * head, dim) for name in _PROJECTIONS.values()
    }
    for name in _GATES.values():
        if name != _GATES["momentum"] or f"{name}.weight" in arrays:
            wanted |= {f"{name}.weight": (heads, dim), f"{name}.bias": (heads,)}
    together = [{_GAMMAS["query_gamma"], _GAMMAS["key_gamma"]}, {_GAMMAS["output_gamma"]}]
    for group in (group for group in together if group & set(arrays)):
        wanted |= dict.fromkeys(sorted(group), (heads, 1, head))
    if set(_NORMS.values()) & set(arrays):
        wanted |= dict.fromkeys(_NORMS.values(), (dim,))
    if heads > 1:
        wanted |= {_HEADS["gate"]: (heads, dim), _HEADS["combine"]: (dim, heads * head)}
    memory, template = _networks(arrays)
    hidden = arrays[memory["weights"][0]].shape[-1] if memory["weights"] else head
    sizes = [head, *[hidden] * (len(memory["weights"]) - 1), head]
    shapes_ = zip(sizes[:-1], sizes[1:], strict=True)
    for ours, theirs, shape in zip(memory["weights"], template["weights"], shapes_, strict=False):
        wanted |= {ours: (heads, *shape), theirs: shape}
    if memory["gamma"]:
        wanted |= {memory["gamma"][0]: (heads, head), template["gamma"][0]: (head,)}
    shapes = {name: array.shape for name, array in arrays.items()}
    for name in dict.fromkeys([*wanted, *sorted(shapes)]):
        if wanted.get(name) != shapes.get(name):
            raise ValueError(
                f"{name} is {shapes.get(name, 'absent')} in the state dict and must be {wanted.get(name, 'absent')}: "
                "build the NeuralMemory as titans_jax.interop describes"
            )
