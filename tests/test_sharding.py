"""The mesh a user writes, and where arrays go on it. Several devices: tests/multidevice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from titans_jax import sharding
from titans_jax.sharding import RULES, make_mesh

MESH = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3)
DATA = AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,))


def test_the_empty_mesh_takes_every_device_for_data():
    mesh = make_mesh("")
    assert dict(mesh.shape) == {"data": jax.device_count()} and mesh.axis_types == (AxisType.Explicit,)


@pytest.mark.parametrize("spec", ["rows=1", "data", "data=", "data=x", "data=0", "data=-1", "data=1,data=1", "data=1,"])
def test_a_mesh_that_is_no_mesh_is_refused(spec):
    with pytest.raises(ValueError, match=r"^mesh: .*write e\.g\. data=4,fsdp=2 with axes data, fsdp, tensor$"):
        make_mesh(spec)


def test_a_mesh_of_another_size_is_refused():
    wrong = 3 * jax.device_count()
    with pytest.raises(ValueError, match=rf"'data={wrong}' is {wrong} devices, there are {jax.device_count()}"):
        make_mesh(f"data={wrong}")


@pytest.mark.parametrize(
    "axes, shape, gathered, want",
    [
        (("batch", None, "heads"), None, False, PartitionSpec(("data", "fsdp"), None, "tensor")),
        (("embed", "hidden"), None, False, PartitionSpec("fsdp", "tensor")),
        (("embed", "hidden"), None, True, PartitionSpec(None, "tensor")),
        (("vocab", "embed"), (7, 8), False, PartitionSpec(None, "fsdp")),  # 7 rows on 2 devices: left whole
        (("batch", "heads"), (4, 2), False, PartitionSpec(None, "tensor")),  # 4 rows on 8
    ],
)
def test_logical_axes_on_a_mesh(axes, shape, gathered, want):
    assert RULES.spec(MESH, axes, shape, gathered=gathered) == want


def test_axes_that_the_mesh_lacks_are_whole():
    assert RULES.spec(DATA, ("batch", "embed", "heads")) == PartitionSpec("data", None, None)


def test_without_a_mesh_nothing_happens():
    x = jnp.arange(6.0).reshape(2, 3)
    assert sharding.active() is None and sharding.out(x.shape, "batch", None) is None
    assert sharding.constrain(x, "batch", None) is x and sharding.gather(x, "vocab", "embed") is x
    assert sharding.shard_local(lambda x, y: (x, y), (x, None), (("batch",), ()), (("batch",), ())) == (x, None)


def test_a_mesh_of_one_changes_no_number():
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        y = sharding.shard_local(lambda x, step: (x * 2 + step, step), (x, 3), (("batch",), ()), (("batch",), ()))
    np.testing.assert_array_equal(y[0], x * 2 + 3)


def test_parameters_are_stored_by_their_axes_behind_the_layers():
    mesh = make_mesh("")
    axes, params = (
        {"kernel": ("embed", "heads"), "scale": (None,)},
        {"kernel": jnp.zeros((3, 4, 6)), "scale": jnp.zeros((3, 4))},
    )
    placed = sharding.param_shardings(axes, params, mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(params)
    assert placed["kernel"].spec == PartitionSpec(None, None, None) and placed["scale"].spec == PartitionSpec(
        None, None
    )
