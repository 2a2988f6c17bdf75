"""A layer of titans-pytorch's MemoryAsContextTransformer without a memory, as a block of `--model.block transformer`.

Their layer is SegmentedAttention, then FeedForward, each added to its input. The mathematics is the same, except for
the epsilon of the norms (ours is 1e-6, theirs that of the precision), if their layer has one residual stream, no
long-term or persistent tokens, no value residual, and biases of 0. Our settings are then persistent=0,
positions="rope", and attention="segmented" with segment=segment_len, or for their sliding=True attention="sliding" with
window=segment_len + 1. Their rotary positions rotate neighbouring channels, ours the two halves of a head, so the
columns of queries and keys are permuted.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

State = dict[str, np.ndarray]

_ATTENTION = {"norm.weight", "to_qkv.weight", "to_out.weight", "persistent_memory", "rotary_emb.freqs"}
_NAMES = _ATTENTION | {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}


def layer_from_titans_pytorch(
    attention: Mapping[str, np.ndarray], feed_forward: Mapping[str, np.ndarray], *, heads: int
) -> dict[str, Any]:
    """The parameters of a `nn.blocks.Transformer`, as nested dicts, from the state dicts of a layer's two modules.

    Raises ValueError if the block cannot compute the layer: see the module's docstring.
    """
    size = _head_size(attention["to_qkv.weight"].shape[0], heads)
    for name, array in {**attention, **feed_forward}.items():
        if (name == "persistent_memory" and array.size) or (name.endswith("bias") and array.any()):
            raise ValueError(f"{name} is not {'zero' if name.endswith('bias') else 'empty'}: a block here has none")
    if unknown := (set(attention) | set(feed_forward)) - _NAMES:
        raise ValueError(f"{min(unknown)} belongs to a layer that a block here cannot compute")
    if not np.allclose(attention["rotary_emb.freqs"], _frequencies(size)):
        raise ValueError("rotary_emb.freqs are not 10000^(-2i / head_dim)")
    query, key, value = np.split(attention["to_qkv.weight"].T, 3, axis=1)
    up, gate = np.split(feed_forward["1.weight"].T, 2, axis=1)
    order = _halves(heads, size)
    kernels = {"query": query[:, order], "key": key[:, order], "value": value, "out": attention["to_out.weight"].T}
    mlp = {"gate": gate, "up": up, "down": feed_forward["3.weight"].T}
    return {
        "norm": {"scale": attention["norm.weight"]},
        "attention": {"projections": {name: {"kernel": kernel} for name, kernel in kernels.items()}},
        "mlp_norm": {"scale": feed_forward["0.weight"]},
        "mlp": {name: {"kernel": kernel} for name, kernel in mlp.items()},
    }


def layer_to_titans_pytorch(params: Mapping[str, Any], *, heads: int) -> tuple[State, State]:
    """The state dicts of SegmentedAttention and FeedForward: the inverse of `layer_from_titans_pytorch`.

    Raises ValueError for a block with persistent tokens, which have positions there and none here, or with a value
    residual, which depends on the token there.
    """
    projections = params["attention"]["projections"]
    for name in ("persistent", "mix"):
        if name in projections:
            raise ValueError(f"attention.projections.{name}: titans-pytorch computes it differently")
    kernels = {name: np.asarray(projection["kernel"]) for name, projection in projections.items()}
    mlp = {name: np.asarray(part["kernel"]) for name, part in params["mlp"].items()}
    size = _head_size(3 * kernels["query"].shape[1], heads)
    back = np.argsort(_halves(heads, size))
    dtype = kernels["query"].dtype
    qkv = np.concatenate([kernels["query"][:, back], kernels["key"][:, back], kernels["value"]], 1)
    attention = {
        "norm.weight": params["norm"]["scale"],
        "to_qkv.weight": qkv.T,
        "to_out.weight": kernels["out"].T,
        "persistent_memory": np.zeros((2, heads, 0, size), dtype),
        "rotary_emb.freqs": _frequencies(size).astype(dtype),
    }
    feed_forward = {
        "0.weight": params["mlp_norm"]["scale"],
        "1.weight": np.concatenate([mlp["up"], mlp["gate"]], 1).T,
        "1.bias": np.zeros(2 * mlp["up"].shape[1], dtype),
        "3.weight": mlp["down"].T,
        "3.bias": np.zeros(mlp["down"].shape[1], dtype),
    }
    return _writable(attention), _writable(feed_forward)


def _writable(state: Mapping[str, Any]) -> State:
    """Copies that torch can own: contiguous and writable."""
    return {name: np.array(array, order="C") for name, array in state.items()}


def _head_size(columns: int, heads: int) -> int:
    if columns % (6 * heads):
        raise ValueError(f"to_qkv: {columns} rows cannot be queries, keys and values of {heads} heads of even size")
    return columns // (3 * heads)


def _halves(heads: int, size: int) -> np.ndarray:
    """The index of each of our columns in theirs: first of each pair, then second of each pair, head by head."""
    pairs = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])
    return (np.arange(heads)[:, None] * size + pairs).ravel()


def _frequencies(size: int) -> np.ndarray:
    return 10000.0 ** (-np.arange(0, size, 2) / size)
