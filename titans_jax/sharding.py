"""The mapping of logical axes to mesh axes. Modules name logical axes and have no mesh.

Under `jax.set_mesh(make_mesh("data=4,fsdp=2"))` activations are sharded over the batch; parameters over "fsdp"
(gathered at use) and "tensor" (heads, hidden units, vocabulary). Without a mesh, the functions here do nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

Axes = tuple[str, ...]
MESH_AXES = ("data", "fsdp", "tensor")
BATCH_HEADS = ("batch", "heads")
"""One memory for each sequence and head."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axes of each logical axis. `embed` is the model width of parameters, which are gathered at use."""

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    hidden: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)

    def spec(
        self,
        mesh: Mesh | AbstractMesh,
        axes: tuple[str | None, ...],
        shape: tuple[int, ...] | None = None,
        *,
        gathered: bool = False,
    ) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes.

        shape: an axis whose size is not a multiple of its devices is not sharded; None to skip this check.
        gathered: do not shard `embed`.
        """

        def one(axis: str | None, size: int) -> tuple[str, ...] | None:
            if axis is None or (gathered and axis == "embed"):
                return None
            names = tuple(a for a in getattr(self, axis) if a in mesh.shape)
            return names if names and size % math.prod(mesh.shape[a] for a in names) == 0 else None

        return PartitionSpec(*map(one, axes, shape or (0,) * len(axes)))


RULES = Rules()


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with explicit axes from a text such as "data=4,fsdp=2"; "" puts all devices on the axis "data".

    devices: those of the mesh; None takes all that there are. Raises ValueError for an unknown axis, an invalid size,
    or a product of sizes that is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": len(devices)} if not spec else _parse(spec)
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"mesh: {spec!r} is {math.prod(sizes.values())} devices, there are {len(devices)}")
    explicit = (AxisType.Explicit,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=explicit, devices=devices)


def _parse(spec: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdigit() or int(size) < 1 or axis in sizes:
            raise ValueError(f"mesh: {part!r} in {spec!r}; write e.g. data=4,fsdp=2 with axes {', '.join(MESH_AXES)}")
        sizes[axis] = int(size)
    return sizes


def active() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh`, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def out(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec | None:
    """The `out_sharding` argument for a result with this shape and these logical axes."""
    mesh = active()
    return None if mesh is None else RULES.spec(mesh, axes, shape)


def constrain(x: Array, *axes: str | None) -> Array:
    """Reshard an activation to its logical axes; further axes are whole on every device."""
    mesh = active()
    return x if mesh is None else jax.sharding.reshard(x, RULES.spec(mesh, axes, x.shape))


def flat_spec(spec: PartitionSpec | None) -> PartitionSpec | None:
    """The PartitionSpec of [B T, C] from that of [B, T, C], where T is not sharded."""
    return None if spec is None else PartitionSpec(spec[0], spec[2])


def flat(x: Array) -> Array:
    """[B, T, C] -> [B T, C], with the same sharding."""
    spec = None if active() is None else jax.typeof(x).sharding.spec
    return jnp.reshape(x, (-1, x.shape[-1]), out_sharding=flat_spec(spec))


def gather(x: Array, *axes: str | None) -> Array:
    """Gather a parameter over "fsdp"; it stays sharded over "tensor"."""
    mesh = active()
    return x if mesh is None else jax.sharding.reshard(x, RULES.spec(mesh, axes, x.shape, gathered=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_rounded(x: Array, axes: tuple[str | None, ...], dtype: str) -> Array:
    """`gather` that sends x in `dtype`. The result has x's dtype, and so has its gradient where devices sum it."""
    return gather(x.astype(dtype), *axes).astype(x.dtype)


gather_rounded.defvjp(
    lambda x, axes, dtype: (gather_rounded(x, axes, dtype), None), lambda axes, dtype, _, g: (constrain(g, *axes),)
)


def shard_local(f: Callable[..., Any], arguments: tuple[Any, ...], inputs: Any, outputs: Any) -> Any:
    """f(*arguments) by `jax.shard_map`: each device runs f on its sequences and heads. Without a mesh, a plain call.

    inputs, outputs: the leading logical axes of the leaves of each argument and result, () for a scalar. f must be
      independent along these axes.
    """
    mesh = active()
    if mesh is None:
        return f(*arguments)
    arguments = jax.tree.map(jnp.asarray, arguments)
    sizes = _sizes(inputs, arguments)

    def spec(axes: Axes) -> PartitionSpec:
        return RULES.spec(mesh, axes, tuple(sizes[axis] for axis in axes))

    arguments = _over(
        lambda axes, tree: jax.tree.map(lambda x: jax.sharding.reshard(x, spec(axes)), tree), inputs, arguments
    )
    return jax.shard_map(f, in_specs=_over(spec, inputs), out_specs=_over(spec, outputs), check_vma=False)(*arguments)


def vmap_batch_heads(f: Callable[..., Any], arguments: tuple[Any, ...], inputs: Any, outputs: Any) -> Any:
    """Map f, a function of one sequence and one head, over batch and heads. Each device maps over its part.

    inputs, outputs: BATCH_HEADS for leaves [B, H, ...]; ("batch",), ("heads",) or () for leaves without the other axes.
    It vmaps over one axis of size B H: with two axes, XLA copies the operands of every product.
    """

    def mapped(*arguments: Any) -> Any:
        sizes = _sizes(inputs, arguments)
        shape = tuple(sizes[axis] for axis in BATCH_HEADS)

        def flat(axes: Axes, x: Array) -> Array:
            leading = tuple(sizes[axis] if axis in axes else 1 for axis in BATCH_HEADS)
            rest = x.shape[len(axes) :]
            return jnp.broadcast_to(x.reshape(*leading, *rest), (*shape, *rest)).reshape(-1, *rest)

        def each(act: Callable[[Axes, Array], Array], axes: Any, trees: Any) -> Any:
            return _over(lambda axes, tree: jax.tree.map(lambda x: act(axes, x) if axes else x, tree), axes, trees)

        in_axes, out_axes = (_over(lambda axes: 0 if axes else None, tree) for tree in (inputs, outputs))
        results = jax.vmap(f, in_axes=in_axes, out_axes=out_axes)(*each(flat, inputs, arguments))
        return each(lambda _, x: x.reshape(*shape, *x.shape[1:]), outputs, results)

    return shard_local(mapped, arguments, inputs, outputs)


def _over(act: Callable[..., Any], axes: Any, *trees: Any) -> Any:
    """Map act(axes, subtree of each tree) over the leaves of `axes`, which are tuples of names."""
    return jax.tree.map(act, axes, *trees, is_leaf=lambda x: type(x) is tuple and all(isinstance(a, str) for a in x))


def _sizes(inputs: Any, arguments: Any) -> dict[str, int]:
    """The size of each logical axis."""
    sizes: dict[str, int] = {}

    def note(axes: Axes, tree: Any) -> None:
        for x in jax.tree.leaves(tree):
            sizes.update(zip(axes, jnp.shape(x), strict=False))

    _over(note, inputs, arguments)
    return sizes


def automatic(f: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """f with automatic sharding inside, and results sharded as the arrays `like`. Without a mesh, f itself.

    For optimizers, which contract over parameters' axes and know nothing of the mesh.
    """
    if active() is None:
        return f
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, like)
    return jax.sharding.auto_axes(f, out_sharding=specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis is sharded."""
    return NamedSharding(mesh, RULES.spec(mesh, ("batch",)))


def param_shardings(axes: Any, params: Any, mesh: Mesh) -> Any:
    """The NamedSharding of each parameter, as a tree like `params`.

    axes: the logical axes of each leaf, without those of stacked layers.
    """

    def one(names: tuple[str | None, ...], x: Array) -> NamedSharding:
        names = (None,) * (x.ndim - len(names)) + names
        return NamedSharding(mesh, RULES.spec(mesh, names, x.shape))

    return jax.tree.map(one, axes, params, is_leaf=lambda x: isinstance(x, tuple))
