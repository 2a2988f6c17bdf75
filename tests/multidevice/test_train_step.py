"""The same training on one device and on eight: data-parallel, parameters sharded, heads and vocabulary split."""

import json

import pytest

from tests.tolerance import MARGIN, ROUNDING

MESHES = ("data=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")

SOURCE = """
import json, sys
import jax, numpy as np
from tests.nn.members import abstract, config_of, random_params
from flax import nnx
from titans_jax import sharding
from titans_jax.config import TrainConfig
from titans_jax.optim import OptimConfig, build
from titans_jax.training.step import TrainState, define, make_step

meshes, optimizer, steps, rate, row, changes, resets, parts = json.loads(sys.argv[1])
definition = define(config_of(row, **changes))
optimizer = build(OptimConfig(name=optimizer, peak_rate=rate, warmup=steps), steps)
start = jax.tree.map(lambda x: x.astype("float32"), random_params(definition.shapes))
rng = np.random.default_rng(0)
text = rng.integers(0, 32, (8, 41), np.int32)
batch = dict(inputs=text[:, :-1], targets=text[:, 1:], mask=np.ones((8, 40), np.float32))
if resets:
    batch["reset"] = (np.arange(40) % 8 == 0) & (rng.random((8, 40)) < 0.5)

def train(params, batch, parts):
    step = make_step(definition.graphdef, optimizer, TrainConfig(), parts)
    state, losses = TrainState(params, jax.jit(optimizer.init)(params), jax.random.key(1)), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, sorted({str(x.sharding.spec) for x in jax.tree.leaves(state.params) if hasattr(x.sharding, "spec")})

def alone(order):
    return train(jax.tree.map(jax.numpy.array, start), {name: x[order] for name, x in batch.items()}, 1)[0]

found = {}
for spec in meshes:
    mesh = sharding.make_mesh(spec)
    with jax.set_mesh(mesh):
        params = jax.device_put(start, sharding.param_shardings(definition.axes, start, mesh))
        found[spec] = train(params, jax.device_put(batch, sharding.batch_sharding(mesh)), parts)
print(json.dumps([[alone(rng.permutation(8) if i else np.arange(8)) for i in range(3)], found]))
"""


def check(run_python, meshes, row, *, optimizer="adamw", steps=20, rate=1e-3, resets=False, parts=1, **changes):
    """Losses of a mesh are as near those of one device as these are to themselves with the batch in another order."""
    given = [meshes, optimizer, steps, rate, row, changes, resets, parts]
    done = run_python("-c", SOURCE, json.dumps(given), devices=8)
    (alone, *reordered), found = json.loads(done.stdout.splitlines()[-1])
    assert alone[-1] < alone[0] - 0.01
    assert list(found) == list(meshes)
    rounding = max(apart(losses, alone) for losses in reordered)
    for spec, (losses, parts) in found.items():
        assert apart(losses, alone) <= MARGIN * max(rounding, ROUNDING), spec
        assert all(any(axis in part for part in parts) == (axis in spec) for axis in ("fsdp", "tensor")), (spec, parts)


def apart(losses, others):
    return max(abs(x - y) / abs(y) for x, y in zip(losses, others, strict=True))


@pytest.mark.slow
def test_twenty_losses_of_a_mac_are_those_of_one_device(run_python):
    check(run_python, MESHES[1:2], dict(block="mac", persistent=3), optimizer="muon", depth=1, heads=2)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["mac", "lmm", "transformer"])  # mal and mag stand below
def test_every_block_with_every_residual(run_python, block):
    residual = {"lmm": "weight", "transformer": "value"}.get(block, "both")
    row = dict(block=block, residual=residual, positions="learned", persistent=3)
    meshes = MESHES if block == "transformer" else MESHES[2:]  # a mesh costs a compilation: the cheap block has all
    depth = {"lmm": 5, "transformer": 5}.get(block, 2)  # so many are scanned
    check(run_python, meshes, row, optimizer="sgd", resets=block == "mac", heads=2, depth=depth)


@pytest.mark.slow
def test_what_the_mesh_does_not_divide_is_left_whole(run_python):
    """3 attention heads and 33 words over 2 devices; the 2 rows of a device in 2 parts."""
    row = dict(block="mal", positions="axial", persistent=3)
    check(run_python, MESHES[2:], row, parts=2, heads=3, vocab_size=33)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        dict(block="hope", rule="dgd", max_rate=0.02, cms=dict(rate=0.1)),
        dict(block="hope_attention", attention="sliding", cms=dict(rate=0.1, variant="nested")),
        dict(block="mag", rule="titans", chunk=16, shard=8, local_chunks=(4,)),
    ],
    ids=["hope", "hope_attention", "tnt"],
)
def test_inner_loops_and_memories_of_memories(run_python, row):
    """The kernels of an inner loop are split over rows and hidden units, and reset with the documents."""
    # a step takes long, and the losses of 2 to 8 steps differ by as many of their own rounding errors
    check(run_python, MESHES[2:], row, optimizer="sgd", steps=6, rate=1e-2, depth=1, heads=2)
