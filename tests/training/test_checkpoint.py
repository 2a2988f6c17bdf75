"""Checkpoints: what is saved comes back exactly, and whatever happens to the disk the newest good step wins."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from titans_jax.checkpoint import CheckpointError, Checkpoints

ROOT = Path(__file__).resolve().parents[2]


def arrays_at(step: int) -> dict:
    """Arrays that tell the step they were saved at."""
    params = {"layers": [{"w": jnp.full((3, 4), step / 7)}, {"w": jnp.arange(6.0, dtype=jnp.bfloat16) * step}]}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    return {"params": params, "optimizer": optimizer, "key": jax.random.key(step)}


def abstract_of(arrays: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def assert_same(left: dict, right: dict) -> None:
    def plain(x: jax.Array) -> np.ndarray:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(plain(a), plain(b))


def damage(directory: Path, step: int, item: str = "params") -> None:
    """Flips one bit in the largest array file of a step."""
    path = max((p for p in (directory / str(step) / item).rglob("d/*")), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_everything_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    arrays = arrays_at(3) | {"empty": {"none": (), "zero": jnp.zeros((0, 2), jnp.int32)}, "scalar": jnp.int32(4)}
    checkpoints.save(3, arrays, meta={"config": {"dim": 8, "names": ["a"]}, "rate": 0.1})
    restored, meta, step = checkpoints.restore(abstract_of(arrays))
    assert_same(restored, arrays)
    assert (meta, step) == ({"config": {"dim": 8, "names": ["a"]}, "rate": 0.1}, 3)
    assert checkpoints.meta() == meta


def test_parameters_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, arrays_at(1))
    params = {"params": arrays_at(1)["params"]}
    restored, _, _ = checkpoints.restore(abstract_of(params))
    assert_same(restored, params)


def test_keeps_the_latest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)]:
        checkpoints.save(step, arrays_at(step), score=score)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.find("last") == 5
    arrays, _, step = checkpoints.restore(abstract_of(arrays_at(0)), which="best")
    assert step == 2
    assert_same(arrays, arrays_at(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5", "manifests"]
    assert Checkpoints(tmp_path).restore(abstract_of(arrays_at(0)), which=4)[2] == 4
    damage(tmp_path, 2)
    assert checkpoints.find("best") == 5
    with pytest.raises(CheckpointError, match=r"no step 3, only \[2, 4, 5\]"):
        checkpoints.find(3)


def test_the_best_is_the_last_where_none_has_a_score(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, arrays_at(step))
    assert checkpoints.find("best") == 3
    damage(tmp_path, 3)
    assert checkpoints.find("best") == 2


def test_a_flipped_bit_falls_back_and_is_reported(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, arrays_at(step))
    damage(tmp_path, 30)
    with caplog.at_level(logging.WARNING):
        arrays, _, step = checkpoints.restore(abstract_of(arrays_at(0)))
    assert step == 20
    assert_same(arrays, arrays_at(20))
    assert "step 30 is damaged and skipped: params" in caplog.text
    with pytest.raises(CheckpointError, match="step 30 is damaged"):
        checkpoints.restore(abstract_of(arrays_at(0)), which=30)
    checkpoints.save(25, arrays_at(25))  # the run goes on from step 20: the damaged step makes way
    assert checkpoints.steps() == [10, 20, 25]


@pytest.mark.parametrize("what", ["array file", "manifest", "meta", "missing file"])
def test_any_damage_is_found(tmp_path, what):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, arrays_at(step), score=1.0 / step)
    if what == "array file":
        damage(tmp_path, 2, "optimizer")
    elif what == "manifest":
        (tmp_path / "manifests/2.json").write_text('{"params": ')
    elif what == "meta":
        path = tmp_path / "2/meta/metadata"
        path.write_text(path.read_text().replace("0.5", "0.4"))
    else:
        next((tmp_path / "2/params/d").iterdir()).unlink()
    assert checkpoints.find("last") == 1
    assert checkpoints.find("best") == 1


def test_a_step_killed_before_its_manifest_does_not_exist(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, arrays_at(step))
    (tmp_path / "2").rename(tmp_path / "3")
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "trash/1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoints.find()
    checkpoints.save(3, arrays_at(3))
    assert_same(checkpoints.restore(abstract_of(arrays_at(0)))[0], arrays_at(3))
    assert {path.name for path in tmp_path.iterdir()} == {"3", "manifests"}


def test_nothing_usable(tmp_path):
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        Checkpoints(tmp_path / "absent").restore({})
    assert not (tmp_path / "absent").exists()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, arrays_at(1))
    damage(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint among steps \[1\]"):
        checkpoints.meta()
    with pytest.raises(ValueError, match="which='latest'"):
        checkpoints.find("latest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["layers"][0].update(w=jnp.zeros((3, 5))), r"params/layers/0/w is float32\[3,4\] there, .*\[3,5\]"),
        (lambda p: p["layers"][1].update(w=jnp.zeros(6)), r"params/layers/1/w is bfloat16\[6\] there, float32\[6\]"),
        (lambda p: p["layers"].append({"w": jnp.zeros(2)}), r"params/layers/2/w is missing there, float32\[2\]"),
        (lambda p: p["layers"].pop(), r"params/layers/1/w is .* there, missing here"),
    ],
)
def test_a_misfit_is_named(tmp_path, change, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, arrays_at(1))
    wanted = {"params": arrays_at(1)["params"]}
    change(wanted["params"])
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(wanted)
    assert "\n" not in str(error.value)
    abstract_mesh = jax.sharding.AbstractMesh((1,), ("data",))
    nowhere = jax.ShapeDtypeStruct(
        (), jax.random.key(0).dtype, sharding=jax.sharding.NamedSharding(abstract_mesh, jax.P())
    )
    with pytest.raises(ValueError, match="abstract key/value: its sharding names no devices"):
        checkpoints.restore({"key": nowhere})
    with pytest.raises(CheckpointError, match="not 'weights'"):
        checkpoints.restore({"weights": wanted["params"]})


def test_what_cannot_be_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, arrays_at(5))
    bad = arrays_at(6)
    bad["params"]["layers"][1]["w"] = bad["params"]["layers"][1]["w"].at[2].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="step 6 was not saved: params/layers/1/w is not finite"):
        checkpoints.save(6, bad)
    with pytest.raises(ValueError, match="JSON with finite numbers"):
        checkpoints.save(6, arrays_at(6), score=float("inf"))
    with pytest.raises(ValueError, match="JSON with finite numbers"):
        checkpoints.save(6, arrays_at(6), meta={"path": tmp_path})
    with pytest.raises(ValueError, match="params/lr: expected an array, not 0.1"):
        checkpoints.save(6, {"params": {"lr": 0.1}})
    with pytest.raises(ValueError, match="'meta' is reserved"):
        checkpoints.save(6, {"meta": jnp.zeros(1)})
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    for step in (4, 5):
        with pytest.raises(CheckpointError, match=f"cannot save step {step}, step 5 is already there"):
            checkpoints.save(step, arrays_at(step))
    assert checkpoints.steps() == [5]


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/tests/training"]
from test_checkpoint import Checkpoints, CheckpointError, arrays_at, abstract_of, assert_same
checkpoints = Checkpoints(Path(sys.argv[1]))
try:
    arrays, _, step = checkpoints.restore(abstract_of(arrays_at(0)))
    assert_same(arrays, arrays_at(step))
except CheckpointError:
    step = 0
print("from", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, arrays_at(step), score=1.0 / step)
    print("saved", step, flush=True)
"""


def run_until_killed(directory: Path, seconds: float) -> tuple[int, int]:
    """Saves steps in another process, kills it so long after its first save; returns its first and last step."""
    command = [sys.executable, "-c", WRITER, str(directory), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    assert len(whole) >= 2, "the writer died by itself"
    return int(whole[0][1]), int(whole[-1][1])


def test_kill_in_the_middle_of_saves_loses_nothing(tmp_path):
    generator, last = random.Random(0), 0
    for _ in range(3):
        first, now = run_until_killed(tmp_path, generator.uniform(0.05, 0.3))
        assert last <= first <= last + 1  # a step may be complete and the process killed before it could say so
        arrays, _, last = Checkpoints(tmp_path).restore(abstract_of(arrays_at(0)))
        assert now <= last <= now + 1
        assert_same(arrays, arrays_at(last))
    Checkpoints(tmp_path).save(last + 1, arrays_at(last + 1))  # clears temporary folders and trash away
    assert {path.name for path in tmp_path.iterdir()} == {"manifests", str(last), str(last + 1)}
    assert {path.stem for path in (tmp_path / "manifests").glob("*.json")} == {str(last), str(last + 1)}


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from titans_jax import files, metrics
from titans_jax.checkpoint import Checkpoints

def limit(size):  # of a file: a write behind it fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(Path("checkpoints"))
arrays = {"params": {"w": np.random.default_rng(0).normal(size=100_000)}}
checkpoints.save(1, arrays)
log = metrics.Log(".")
for size, work in (
    (100_000, lambda: checkpoints.save(2, arrays)),
    (10, lambda: log.write(1, "train", {"loss": 2.0})),
    (10, lambda: files.write("result.json", "x" * 99)),
):
    limit(size)
    try:
        work()
    except OSError as error:
        limit(resource.RLIM_INFINITY)
        print(error)
checkpoints.save(2, arrays)
print(checkpoints.steps(), checkpoints.restore(arrays)[2])
"""


def test_a_full_disk_is_one_line_and_leaves_the_earlier_steps(run_python, tmp_path):
    done = run_python("-c", FULL)
    saved, logged, written, after = done.stdout.splitlines()
    where = tmp_path / "checkpoints"
    assert saved == (
        f"{where}: step 2 of 800,000 bytes could not be saved: File too large; the last checkpoint is step 1"
    )
    assert logged == "[Errno 27] File too large: 'metrics.jsonl'" and written.endswith("File too large: 'result.json'")
    assert after == "[1, 2] 2"
    assert "Traceback" not in done.stderr


def test_free_space_is_checked_before_saving(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match=r"step 1 of \d+ bytes could not be saved, as 100 are free; there is"):
        checkpoints.save(1, arrays_at(1))
    monkeypatch.undo()
    checkpoints.save(1, arrays_at(1))


MESHES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, sys.argv[2])
from titans_jax.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
x = np.arange(64.0, dtype=np.float32).reshape(8, 8) / 3
for step, shape in [(1, (8, 1)), (2, (2, 4)), (3, (1, 1))]:
    mesh = jax.make_mesh(shape, ("data", "fsdp"), devices=jax.devices()[: shape[0] * shape[1]])
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data", "fsdp"))
    if step > 1:
        abstract = {"params": jax.ShapeDtypeStruct((8, 8), "float32", sharding=sharding)}
        restored = checkpoints.restore(abstract)[0]["params"]
        assert restored.sharding == sharding, restored.sharding
        np.testing.assert_array_equal(restored, x)
    checkpoints.save(step, {"params": jax.device_put(x, sharding)})
"""


def test_another_mesh(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", MESHES, str(tmp_path), str(ROOT)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    restored, _, step = Checkpoints(tmp_path).restore({"params": jax.ShapeDtypeStruct((8, 8), "float32")}, which=2)
    assert step == 2
    np.testing.assert_array_equal(restored["params"], np.arange(64.0, dtype=np.float32).reshape(8, 8) / 3)
