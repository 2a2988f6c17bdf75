"""Linear maps, norms, convolution and positions.

Notation, used throughout `titans_jax.nn` (kernels are [in, out]):

    B  sequences    T  tokens of a call    H  heads    D  head size    E  model width (`dim`)
    age [B, T]      tokens since the document's start
    state           what a layer carries from call to call: an argument and a result, of fixed size
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from titans_jax import sharding
from titans_jax.memory import Weights
from titans_jax.memory.stream import Valid, all_valid
from titans_jax.nn.cpu import inner, rowwise, scaled

Axes = tuple[str | None, ...]
Module = TypeVar("Module")


def param(value: Array, *axes: str | None) -> nnx.Param[Array]:
    """A float32 parameter with the logical axes that decide its sharding."""
    return nnx.Param(value.astype(jnp.float32), axes=axes)


class Linear(nnx.Module):
    """y = x W (+ b).

    kernel: [inputs, outputs].
    axes: the kernel's logical axes; see `sharding`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        axes: Axes,
        *,
        dtype: str = "float32",
        scale: float = 1.0,
        bias: float | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = jax.random.truncated_normal(rngs.params(), -2, 2, (inputs, outputs)) * scale / inputs**0.5
        self.kernel = param(kernel, *axes)
        self.bias = None if bias is None else param(jnp.full(outputs, bias), axes[1])
        self.axes, self.dtype = axes, dtype

    def gathered(self) -> "Linear":
        """The same map with a kernel that is whole over "fsdp", rounded to `dtype`."""
        graph, params = nnx.split(self)
        params["kernel"] = self.kernel.replace(sharding.gather_rounded(self.kernel[...], self.axes, self.dtype))
        return nnx.merge(graph, params)

    def kernels(self, batch: int) -> Array:
        """A copy of the kernel for each sequence, [B, inputs, outputs], sharded as the activations are."""
        kernel = sharding.gather(self.kernel[...], *self.axes)
        axes = tuple(None if axis == "embed" else axis for axis in self.axes)
        return broadcast_batch(kernel[None], batch, "batch", *axes)

    def __call__(self, x: Array, kernel: Array | None = None) -> Array:
        """x: [B, T, inputs] -> [B, T, outputs], of `dtype`.

        kernel: None, or [B, inputs, outputs], one for each sequence.
        """
        is_shared = kernel is None
        kernel = sharding.gather(self.kernel[...], *self.axes) if kernel is None else kernel
        out = None if self.axes[1] == "embed" else self.axes[1]
        shape = (*x.shape[:2], kernel.shape[-1])
        spec = sharding.out(shape, "batch", None, out)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if is_shared:
            # One axis of rows: with two, XLA on CPUs transposes both factors of the kernel's gradient.
            y = jnp.einsum("ri,io->ro", sharding.flat(x), kernel, out_sharding=sharding.flat_spec(spec))
            y = y.reshape(shape, out_sharding=spec)
        else:
            y = jnp.einsum("bti,bio->bto", x, kernel, out_sharding=spec)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def gathered(module: Module) -> Module:
    """The module with its `Linear` maps gathered, so that code which uses them several times gathers them once."""

    def is_linear(x: Any) -> bool:
        return isinstance(x, Linear)

    if sharding.active() is None:
        return module
    return jax.tree.map(lambda x: x.gathered() if is_linear(x) else x, module, is_leaf=is_linear)


def broadcast_batch(x: Array, batch: int, *axes: str | None) -> Array:
    """[1, ...] -> [B, ...], a new buffer with these logical axes."""
    shape = (batch, *x.shape[1:])
    return jnp.broadcast_to(x, shape, out_sharding=sharding.out(shape, *axes)) + 0


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale over the last axis, in float32."""

    def __init__(self, size: int) -> None:
        self.scale = param(jnp.ones(size), None)

    def __call__(self, x: Array) -> Array:
        """x: [..., size] -> the same, of x's dtype."""
        y = x.astype(jnp.float32)
        y = rowwise(y, _inverse_norm(inner(y, y) / y.shape[-1]))
        return scaled(y, self.scale[...]).astype(x.dtype)


class SwiGLU(nnx.Module):
    """(silu(x W_gate) * x W_up) W_down."""

    def __init__(self, dim: int, hidden: int, *, dtype: str, scale: float, rngs: nnx.Rngs) -> None:
        self.gate = Linear(dim, hidden, ("embed", "hidden"), dtype=dtype, rngs=rngs)
        self.up = Linear(dim, hidden, ("embed", "hidden"), dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, ("hidden", "embed"), dtype=dtype, scale=scale, rngs=rngs)

    def kernels(self, batch: int) -> Weights:
        """A copy of each kernel for each sequence, [B, in, out]."""
        return {name: getattr(self, name).kernels(batch) for name in ("gate", "up", "down")}

    def __call__(self, x: Array, kernels: Weights | None = None) -> Array:
        """x: [B, T, E] -> [B, T, E]. kernels: as `kernels` returns them; without them, the parameters."""
        w = kernels or {}
        return self.down(jax.nn.silu(self.gate(x, w.get("gate"))) * self.up(x, w.get("up")), w.get("down"))


class Conv(nnx.Module):
    """Causal depthwise convolution over time: y_t = sum_i taps_i x_{t-i}.

    Together with the projection before it, the depthwise-separable convolution of Titans (section 4.4). The state is
    the last width - 1 inputs, [B, width - 1, channels].
    """

    def __init__(self, width: int, channels: int, taps: Array | None = None) -> None:
        """taps: [width, channels] at the start; without them, y_t = x_t."""
        identity = jnp.zeros((width, channels)).at[0].set(1.0)
        self.taps = param(identity if taps is None else taps, None, None)
        self.width = width

    def init_state(self, batch: int, dtype: str) -> Array:
        """The state before the first token: zeros."""
        return sharding.constrain(jnp.zeros((batch, self.width - 1, self.taps.shape[1]), dtype), "batch", None, "heads")

    def __call__(self, x: Array, state: Array, age: Array, valid: Valid | None = None) -> tuple[Array, Array]:
        """Convolve x and update the state.

        Args:
          x: [B, T, channels].
          state: the last inputs.
          age: [B, T]; a token does not see other documents.
          valid: None if all rows are tokens, or [T] bool; the valid rows are contiguous.

        Returns:
          y [B, T, channels], and the new state.
        """
        T, before = x.shape[1], self.width - 1
        end: Array | int = T
        if all_valid(valid):
            inputs = jnp.concatenate([state, x], 1)
        else:
            # Write the last inputs right before the first valid row.
            valid = jnp.asarray(valid)
            first = jnp.argmax(valid)
            inputs = jnp.concatenate([jnp.zeros_like(state), x], 1)
            inputs, end = lax.dynamic_update_slice_in_dim(inputs, state, first, 1), first + valid.sum()
        taps = self.taps[...]
        y = scaled(x, taps[0])
        for i in range(1, self.width):
            visible = (age >= i)[..., None].astype(x.dtype)
            y += scaled(visible * lax.dynamic_slice_in_dim(inputs, before - i, T, 1), taps[i])
        return y, lax.dynamic_slice_in_dim(inputs, end, before, 1)


def l2_normalise(x: Array) -> Array:
    """x / sqrt(sum(x^2) + 1e-6) over the last axis, in float32 or wider: its gradient at small x overflows float16."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return rowwise(y, _inverse_norm(inner(y, y))).astype(x.dtype)


def _inverse_norm(squared: Array) -> Array:
    """1 / sqrt(squared + 1e-6), and 0 at 0.

    A row of zeros, such as the relative read of a new memory, then has no gradient; its factor of 1,000 would overflow
    float16.
    """
    return jnp.where(squared > 0, lax.rsqrt(squared + 1e-6), 0)


def split_heads(x: Array, heads: int) -> Array:
    """[B, T, H D] -> [B, H, T, D]."""
    shape = (*x.shape[:2], heads, x.shape[2] // heads)
    return x.reshape(shape, out_sharding=sharding.out(shape, "batch", None, "heads", None)).swapaxes(1, 2)


def merge_heads(y: Array) -> Array:
    """[B, H, T, D] -> [B, T, H D]."""
    y = y.swapaxes(1, 2)
    return y.reshape(*y.shape[:2], -1)


def logit(p: float) -> float:
    """The inverse of the sigmoid."""
    return math.log(p / (1 - p))


def rotate(x: Array, positions: Array) -> Array:
    """Rotary positions (RoFormer Eq 34, base 10000) on the pairs (x_i, x_{i + D/2}).

    x: [..., T, H, D].
    positions: [T].
    """
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class AxialPositions(nnx.Module):
    """Continuous axial positions: MLP(position in the segment) + MLP(log(1 + index of the segment)).

    They exist for every length, because the coordinates are real numbers.
    """

    def __init__(self, dim: int, segment: int, *, rngs: nnx.Rngs) -> None:
        self.segment = segment
        self.place = _Coordinate(dim, rngs=rngs)
        self.number = _Coordinate(dim, rngs=rngs)

    def __call__(self, age: Array) -> Array:
        """age: [B, T] -> [B, T, E]."""
        index = (age // self.segment).astype(jnp.float32)
        return self.place((age % self.segment) / self.segment) + self.number(jnp.log1p(index))


class _Coordinate(nnx.Module):
    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.up = Linear(1, dim, (None, None), bias=0.0, rngs=rngs)
        self.down = Linear(dim, dim, (None, None), scale=0.02 * dim**0.5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.up(x[..., None])))


class LearnedPositions(nnx.Module):
    """A learned vector for each of `context` positions, repeated after `context` tokens."""

    def __init__(self, dim: int, context: int, *, rngs: nnx.Rngs) -> None:
        self.embedding = param(0.02 * jax.random.normal(rngs.params(), (context, dim)), None, "embed")

    def __call__(self, age: Array) -> Array:
        """age: [B, T] -> [B, T, E]."""
        table = sharding.gather(self.embedding[...], None, "embed")
        spec = sharding.out((*age.shape, table.shape[1]), "batch", None, None)
        return table.at[age % table.shape[0]].get(out_sharding=spec)


def positions_of(kind: str, dim: int, segment: int, context: int, rngs: nnx.Rngs) -> Callable[[Array], Array] | None:
    """The positions that are added to the embedding, or None."""
    if kind == "axial":
        return AxialPositions(dim, segment, rngs=rngs)
    return LearnedPositions(dim, context, rngs=rngs) if kind == "learned" else None
