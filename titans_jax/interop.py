"""Weights of titans-pytorch's NeuralMemory, both ways, and the same layer computed by `titans_jax.memory`.

NumPy arrays are all that passes between the two, and torch is not imported here:

    weights = from_titans_pytorch({name: tensor.numpy() for name, tensor in module.state_dict().items()})
    state = {name: torch.from_numpy(array) for name, array in to_titans_pytorch(weights).items()}
    module.load_state_dict(state, assign=True)  # by copy it fails: a new module's heads are views of one memory

titans-pytorch 0.5.5 computes the paper's recurrence where it is built as

    NeuralMemory(dim, heads=H, dim_head=dim // H, chunk_size=1, batch_size=chunk, model=MemoryMLP(dim // H, depth, 4.0),
        activation=SiLU(), momentum=True, qk_rmsnorm=True, pre_rmsnorm=False, post_rmsnorm=False,
        mem_model_norm_add_residual=False, store_memory_loss_fn=lambda p, t: (p - t).pow(2).sum(-1),
        default_step_transform_max_lr=rate_max, max_grad_norm=None)

with q_norm.gamma and k_norm.gamma at (dim // H)**-0.5 - 1, which makes queries and keys unit vectors. Its `batch_size`
is our chunk: each token writes, then reads, with gradients taken where the last whole batch of tokens ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from titans_jax.memory import Architecture, Gates, Rule, Weights, bias, learner, miras, retention
from titans_jax.memory.base import Linear


class Dense(NamedTuple):
    """x @ kernel + bias. kernel: [in, out]; bias: [out]."""

    kernel: Array
    bias: Array


class NeuralMemoryWeights(NamedTuple):
    """The weights of one NeuralMemory; H heads of size D, all matrices [in, out].

    query, key, value: [dim, H D]. query_gamma, key_gamma: [H, D], the gain of the RMS norm less one.
    rate, momentum, forget: [dim, H] and [H], before the sigmoid; keep is 1 - sigmoid(forget).
    memory: w1, ..., w_depth, each [H, in, out], where every sequence starts. gate: [dim, H] and combine: [H D, dim]
    of more than one head, else None. template: w1, ... [in, out], which the torch module holds and never computes with.
    """

    query: Array
    key: Array
    value: Array
    query_gamma: Array
    key_gamma: Array
    rate: Dense
    momentum: Dense
    forget: Dense
    memory: Weights
    template: Weights
    gate: Array | None = None
    combine: Array | None = None


def memory_mlp(sizes: Sequence[int]) -> Architecture:
    """M(x) = gelu(... gelu(x W_1) ...) W_depth: exact gelu, neither residual nor norm. W_i: [sizes[i-1], sizes[i]].

    >>> memory_mlp([4, 16, 4]).init(jax.random.key(0))["w1"].shape
    (4, 16)
    """
    names = [f"w{i}" for i in range(1, len(sizes))]

    def init(key: Array) -> Weights:
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(names))
        shapes = zip(sizes[:-1], sizes[1:], strict=True)
        return {name: draw(k, shape) for name, k, shape in zip(names, keys, shapes, strict=True)}

    def apply(linear: Linear, x: Array) -> Array:
        x = linear(names[0], x)
        for name in names[1:]:
            x = linear(name, jax.nn.gelu(x, approximate=False))
        return x

    return Architecture(init, apply, {names[-1]: "out"} | {names[0]: "in"})


def from_titans_pytorch(state: Mapping[str, np.ndarray]) -> NeuralMemoryWeights:
    """Read the state dict of a NeuralMemory, as NumPy arrays in their own precision.

    The state dict does not tell the loss, the activation, the largest rate or batch_size: see the module's docstring.
    Raises ValueError where the arrays are not those of a NeuralMemory in that configuration.
    """
    _check(state)
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in state.items()}

    def dense(name: str) -> Dense:
        return Dense(arrays[f"{name}.0.weight"].T, arrays[f"{name}.0.bias"])

    def network(prefix: str) -> Weights:
        return {f"w{i + 1}": arrays[f"{prefix}.{i}"] for i in range(_depth(arrays))}

    heads = arrays["q_norm.gamma"].shape[0]
    return NeuralMemoryWeights(
        query=arrays["to_queries.0.weight"].T,
        key=arrays["to_keys.0.weight"].T,
        value=arrays["to_values.0.weight"].T,
        query_gamma=arrays["q_norm.gamma"][:, 0],
        key_gamma=arrays["k_norm.gamma"][:, 0],
        rate=dense("to_adaptive_step"),
        momentum=dense("to_momentum"),
        forget=dense("to_decay_factor"),
        memory=network("memory_model_parameters"),
        template=network("memory_model.weights"),
        gate=arrays["retrieve_gate.0.weight"].T if heads > 1 else None,
        combine=arrays["combine_heads.weight"].T if heads > 1 else None,
    )


def to_titans_pytorch(weights: NeuralMemoryWeights) -> dict[str, np.ndarray]:
    """Write the state dict that `from_titans_pytorch` reads: its exact inverse, for `load_state_dict(strict=True)`.

    Raises ValueError where the weights' shapes do not belong together.
    """
    state = {
        "q_norm.gamma": weights.query_gamma[:, None],
        "k_norm.gamma": weights.key_gamma[:, None],
        "to_queries.0.weight": weights.query.T,
        "to_keys.0.weight": weights.key.T,
        "to_values.0.weight": weights.value.T,
    }
    gates = {"adaptive_step": weights.rate, "momentum": weights.momentum, "decay_factor": weights.forget}
    for name, part in gates.items():
        state |= {f"to_{name}.0.weight": part.kernel.T, f"to_{name}.0.bias": part.bias}
    for prefix, network in (("memory_model.weights", weights.template), ("memory_model_parameters", weights.memory)):
        state |= {f"{prefix}.{i}": network[f"w{i + 1}"] for i in range(len(network))}
    if weights.gate is not None and weights.combine is not None:
        state |= {"retrieve_gate.0.weight": weights.gate.T, "combine_heads.weight": weights.combine.T}
    arrays = {name: np.array(array, order="C") for name, array in state.items()}  # torch wants memory it may write to
    _check(arrays)
    return arrays


def neural_memory(weights: NeuralMemoryWeights, x: Array, *, chunk: int, rate_max: float) -> Array:
    """What NeuralMemory returns for whole sequences (Titans Eq 11-15, gradients at the chunk's start, Eq 16-18).

    q, k = norm(silu(x W)), v = silu(x W_V); rate = rate_max sigmoid(.); loss ||M(k) - v||^2 summed over features.
    The heads' reads are each scaled by sigmoid(x gate), then mixed by combine; one head is returned as it is.
    x: [B, T, dim]; chunk: their batch_size; rate_max: their default_step_transform_max_lr. Returns [B, T, dim].
    Raises ValueError where x or chunk do not fit.
    """
    heads, head = weights.query_gamma.shape
    if x.ndim != 3 or x.shape[-1] != weights.query.shape[0]:
        raise ValueError(f"neural_memory: x has shape {x.shape}; it must be [batch, tokens, {weights.query.shape[0]}]")

    def split(kernel: Array) -> Array:
        return jax.nn.silu(x @ kernel).reshape(*x.shape[:2], heads, head)

    def gate(dense: Dense, sign: float = 1.0) -> Array:
        return jax.nn.sigmoid(sign * (x @ dense.kernel + dense.bias))

    q = _rms_norm(split(weights.query), weights.query_gamma)
    k = _rms_norm(split(weights.key), weights.key_gamma)
    gates = Gates(rate_max * gate(weights.rate), gate(weights.momentum), gate(weights.forget, -1.0))
    layers = [weights.memory[f"w{i + 1}"] for i in range(len(weights.memory))]
    sizes = [head, *(layer.shape[-1] for layer in layers)]
    rule = Rule(memory_mlp(sizes), bias.l2(), retention.decay(), learner.momentum())
    memory = miras(rule, chunk=chunk, clip=None)

    def one_head(start: Weights, q: Array, k: Array, v: Array, gates: Gates) -> Array:
        return memory.update(memory.init(start), q, k, v, gates)[0]

    each_head = jax.vmap(one_head, in_axes=(0, 1, 1, 1, 1), out_axes=1)
    y = jax.vmap(each_head, in_axes=(None, 0, 0, 0, 0))(weights.memory, q, k, split(weights.value), gates)
    if weights.gate is None or weights.combine is None:
        return y[:, :, 0]
    y = y * jax.nn.sigmoid(x @ weights.gate)[..., None]
    return y.reshape(*x.shape[:2], heads * head) @ weights.combine


def _rms_norm(x: Array, gamma: Array) -> Array:
    """x / sqrt(mean(x^2) + eps) (1 + gamma), eps the precision's own as torch has it. x: [..., H, D]; gamma: [H, D]."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + jnp.finfo(x.dtype).eps) * (1.0 + gamma)


def _depth(arrays: Mapping[str, Any]) -> int:
    return sum(name.startswith("memory_model_parameters.") for name in arrays)


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Compare every name and shape with those of the one configuration that is the paper's recurrence."""
    ranks = {"q_norm.gamma": 3, "to_queries.0.weight": 2, "memory_model_parameters.0": 3}
    for name, rank in ranks.items():
        if name not in arrays or arrays[name].ndim != rank:
            raise ValueError(
                f"the state dict needs {name} with {rank} axes: "
                "it must be of a NeuralMemory with qk_rmsnorm=True, an activation and parameters per head"
            )
    (heads, _, head), dim = arrays["q_norm.gamma"].shape, arrays["to_queries.0.weight"].shape[1]
    wanted: dict[str, tuple[int, ...]] = {f"{name}_norm.gamma": (heads, 1, head) for name in "qk"}
    wanted |= {f"to_{name}.0.weight": (heads * head, dim) for name in ("queries", "keys", "values")}
    for name in ("adaptive_step", "momentum", "decay_factor"):
        wanted |= {f"to_{name}.0.weight": (heads, dim), f"to_{name}.0.bias": (heads,)}
    if heads > 1:
        wanted |= {"retrieve_gate.0.weight": (heads, dim), "combine_heads.weight": (dim, heads * head)}
    hidden = arrays["memory_model_parameters.0"].shape[-1]
    sizes = [head, *[hidden] * (_depth(arrays) - 1), head]
    for i, shape in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        wanted |= {f"memory_model_parameters.{i}": (heads, *shape), f"memory_model.weights.{i}": shape}
    shapes = {name: array.shape for name, array in arrays.items()}
    for name in dict.fromkeys([*wanted, *sorted(shapes)]):
        if wanted.get(name) != shapes.get(name):
            raise ValueError(
                f"{name} is {shapes.get(name, 'absent')} in the state dict and must be {wanted.get(name, 'absent')}: "
                "build the NeuralMemory as titans_jax.interop describes"
            )
