"""Where a run's arrays live: on one device as they are, on several by the mesh."""

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from numpy.typing import NDArray

from titans_jax import sharding
from titans_jax.data import DataConfig


class Placement(NamedTuple):
    """mesh: None on a single device. batch: for arrays [B, ...]. replicated: for arrays that every device holds."""

    mesh: Mesh | None
    batch: Sharding
    replicated: Sharding

    @classmethod
    def of(cls, spec: str, devices: Sequence[jax.Device] | None = None) -> "Placement":
        """The placement for a mesh such as "data=4,fsdp=2"; "" takes every device for data. Raises ValueError.

        devices: those to take; None for all that there are.
        """
        devices = jax.devices() if devices is None else devices
        if not spec and len(devices) == 1:
            device = SingleDeviceSharding(devices[0])
            return cls(None, device, device)
        mesh = sharding.make_mesh(spec, devices)
        return cls(mesh, sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec()))

    @property
    def shards(self) -> int:
        """Into how many parts a batch is cut."""
        if self.mesh is None or not isinstance(self.batch, NamedSharding):
            return 1
        axes = self.batch.spec[0]
        return math.prod(self.mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which everything on the mesh is made and called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def params(self, axes: Any, abstract: Any) -> Any:
        """The sharding of every parameter, from its logical axes and its shape."""
        if self.mesh is None:
            return jax.tree.map(lambda _: self.replicated, abstract)
        return sharding.param_shardings(axes, abstract, self.mesh)

    def abstract_batch(self, config: DataConfig) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of `device_batch`, to compile the step before the data are read."""
        shape = (config.batch, config.sequence)
        types = {"inputs": jnp.int32, "targets": jnp.int32, "mask": jnp.float32, "reset": jnp.bool}
        return {name: jax.ShapeDtypeStruct(shape, types[name], sharding=self.batch) for name in _names(config)}

    def rows(self, batch: int) -> NDArray[np.int64]:
        """Which rows of a batch the devices of this process hold: all of them, or a part."""
        slices = self.batch.addressable_devices_indices_map((batch,)).values()
        return np.unique([np.arange(batch)[index] for index in slices])

    def device_batch(self, host_batch: Mapping[str, np.ndarray], config: DataConfig) -> dict[str, jax.Array]:
        """A training batch on the devices, from its `rows` of this process."""
        shape = (config.batch, config.sequence)
        place = functools.partial(jax.make_array_from_process_local_data, self.batch, global_shape=shape)
        return {name: place(host_batch[name]) for name in _names(config)}


def _names(config: DataConfig) -> tuple[str, ...]:
    """A batch's arrays; `reset` only where a document can begin, because a memory that may reset does more work."""
    return ("inputs", "targets", "mask", *(("reset",) if config.packing == "documents" else ()))
