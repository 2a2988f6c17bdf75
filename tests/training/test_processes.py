"""Several processes that train one model: the numbers of one, one cursor, an agreed stop, and an end when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from titans_jax import training
from titans_jax.metrics import read_records
from titans_jax.training import processes

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "--model.block": "transformer",
    "--model.vocab-size": 256,
    "--model.dim": 16,
    "--model.depth": 1,
    "--model.heads": 2,
    "--model.head-dim": 8,
    "--model.window": 16,
    "--model.segment": 16,
    "--model.memory.heads": 2,
    "--model.memory.head-dim": 8,
    "--model.memory.chunk": 16,
    "--data.facts": 0,
    "--data.sequence": 32,
    "--data.batch": 8,
    "--train.baseline": "",
    "--train.steps": 4,
    "--train.log-every": 1,
    "--train.save-every": 2,
    "--train.eval-every": 4,
    "--train.eval-batches": 1,
    "--train.sample": 2,
}
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(output, count, devices, changes): the processes of a run, in tmp_path; they end with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(output: str, count: int, devices: int, **changes: object) -> list[subprocess.Popen[str]]:
        options = OPTIONS | {f"--{name.replace('__', '.').replace('_', '-')}": to for name, to in changes.items()}
        arguments = [f"{name}={value}" for name, value in options.items()]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "NPROC": str(4 * devices)}
        for index in range(count):
            several = ["--distributed", f"{address},{count},{index}"] if count > 1 else []
            started.append(
                subprocess.Popen(
                    [sys.executable, ROOT / "train.py", "tiny", *arguments, "--output-dir", output, *several],
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started[-count:]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ended(run: list[subprocess.Popen[str]], *codes: int, timeout: float = 300) -> list[tuple[str, str]]:
    """What processes have printed, after a check of their exit codes; gloo's own lines are left out."""
    printed = [process.communicate(timeout=timeout) for process in run]
    assert [process.returncode for process in run] == list(codes), printed
    return [("".join(line for line in out.splitlines(True) if "[Gloo]" not in line), err) for out, err in printed]


def losses(folder: Path) -> list[tuple[int, str, float, float]]:
    rows = [(r["step"], r["split"], r["loss"], r["bits_per_byte"]) for r in read_records(folder) if "loss" in r]
    assert rows
    return rows


def wait_for_step(folder: Path, step: int) -> None:
    log, until = folder / "metrics.jsonl", time.monotonic() + 300
    while not log.exists() or f'"step": {step},' not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_processes_write_one_result(start, tmp_path):
    first, second = ended(start("run", 2, 1, train__steps=1, mesh="tensor=2"), 0, 0)
    assert "1 steps" in first[0] and second[0] == ""
    assert (tmp_path / "run/result.json").is_file() and len(losses(tmp_path / "run")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp=2,tensor=2", "tensor=4"])
def test_the_losses_are_those_of_one_process(start, tmp_path, mesh):
    """With `tensor=4` both processes hold all rows of a batch; with the other each holds its own.

    `tests/multidevice` has the other meshes and blocks, which do not depend on whose the devices are.
    """
    ended(start("two", 2, 2, mesh=mesh), 0, 0)
    ended(start("one", 1, 4, mesh=mesh, train__sample=0), 0)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [row[:2] for row in two] == [row[:2] for row in one]
    for left, right in zip(one, two, strict=True):
        assert right[2:] == pytest.approx(left[2:], rel=1e-6)
    assert (tmp_path / "two/result.json").is_file() and (tmp_path / "two/sample.txt").is_file()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(start, tmp_path):
    """The schedule does not depend on the number of steps, so that a run may be given more of them."""
    run = {"optim__schedule": "constant", "train__eval_every": 100, "train__sample": 0}
    ended(start("whole", 1, 2, train__steps=6, **run), 0)
    for steps, count, devices in ((2, 2, 1), (4, 1, 2), (6, 2, 1)):
        ended(start("broken", count, devices, train__steps=steps, **run), *(0,) * count)
    whole, broken = ([row for row in losses(tmp_path / name) if row[1] == "train"] for name in ("whole", "broken"))
    assert [row[0] for row in broken] == [1, 2, 3, 4, 5, 6]
    assert broken == whole  # bit for bit


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_the_death_of_one_ends_all(start, tmp_path):
    folder, long = (
        tmp_path / "run",
        {"train__steps": 100_000, "train__save_every": 100_000, "train__eval_every": 100_000},
    )
    run = start("run", 2, 1, **long)
    wait_for_step(folder, 3)
    before = read_records(folder)[-1]["step"]
    run[1].send_signal(signal.SIGTERM)
    printed = ended(run, 75, 75)
    (step,) = (int(path.stem) for path in (folder / "checkpoints/manifests").iterdir())
    assert all(f"stopped after step {step}, which is saved" in err for _, err in printed)
    assert step >= before

    run = start("run", 2, 1, **long)
    wait_for_step(folder, step + 2)
    run[1].kill()
    ((_, err),) = ended(run[:1], 76)
    assert err.splitlines()[-1].startswith("train.py: another process of the run has ended")
    assert "Traceback" not in err

    ended(start("run", 2, 1, **long | {"train__steps": step + 2}), 0, 0)
    assert json.loads((folder / "result.json").read_text())["steps"] == step + 2


@pytest.mark.parametrize(
    "spec", ["host", "host:1", "host:1,2", "host:1,2,2", "host:x,2,0", ":1,2,0", "host:1,2,-1", "h:1,2,0,1"]
)
def test_a_malformed_place_among_the_processes_is_one_line(capsys, spec):
    assert training.command(["tiny", f"--distributed={spec}"], prog="train.py") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: --distributed {spec!r} is not HOST:PORT,PROCESSES,INDEX, such as")
    assert error.count("\n") == 1 and not jax.distributed.is_initialized()


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_do_not_answer_are_one_line(run_python, index):
    source = (
        "from titans_jax.training import processes; processes.START = 1; "
        f"processes.start('127.0.0.1:{20_000 + os.getpid() % 10_000},2,{index}', prog='train.py')"
    )
    error = run_python("-c", source, code=2).stderr
    assert error.splitlines()[-1].startswith("train.py: not all processes of the run could be reached at 127.0.0.1:")


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # the script of a job, outside of srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),  # but no TPU is used
    ],
)
def test_a_cluster_is_recognised(environment, several):
    assert processes.has_others(environment, "cpu") == several


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({}, True),  # a TPU VM: the metadata server knows
    ],
)
def test_a_tpu_pod_is_recognised(environment, several):
    assert processes.has_others(environment, "tpu,cpu") == several


def test_an_agreed_event_answers_one_call_later():
    mesh, event = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,)), threading.Event()
    with jax.set_mesh(mesh):
        agreed = processes.Agreed(event, mesh)
        assert not agreed.is_set()
        event.set()
        assert [agreed.is_set(), agreed.is_set(), agreed.is_set()] == [False, True, True]
