"""What every test shares: the platform, and other Python processes with as many devices as a test asks for."""

import atexit
import gc
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# Before jax is imported. An installed libtpu would search for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling: a worker, and the processes that its tests start, have one cache for all lanes.
# Workers do not share it: jax writes entries in place, so that one process may read what another has half written.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="titans-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] += os.sep + worker
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

from titans_jax import waiting

ROOT = Path(__file__).resolve().parents[1]
gc.set_threshold(100_000, 20, 50)  # tracing makes millions of objects that live on: looking for cycles was a tenth

RunPython = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """Tests compile without optimisation, in workers and processes too, but for those that ask for `as_users_compile`.

    Another process finds out which flags XLA knows: here the flags must be set before XLA starts.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_backend_optimization_level" not in flags:
        say = [sys.executable, "-c", "from tests.compiling import QUICK_FLAGS; print(QUICK_FLAGS)"]
        quick = subprocess.run(say, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        os.environ["XLA_FLAGS"] = f"{flags} {quick}".strip()


PROCESSES = {"run_python", "run_notebook", "start", "as_users_compile"}
"""Fixtures of tests that run in processes of their own."""


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist's `--dist loadgroup`, a member's tests, or a file's, run in one process and share its programs.

    Slow ones that run in processes of their own share nothing and take longest: each is a group, and they go first.
    """
    alone = set()
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        member = given.get("member")
        shared = getattr(member, "name", None) or (member and str(member)) or item.path.name
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
        if item.get_closest_marker("slow") and PROCESSES & set(fixtures):
            shared = item.nodeid
            alone.add(item.nodeid)
        item.add_marker(pytest.mark.xdist_group(shared))
    items.sort(key=lambda item: item.nodeid not in alone)


TESTS_RUN = itertools.count(1)


@pytest.fixture(autouse=True)
def room_for_programs() -> Iterator[None]:
    """Let go of compiled programs before they use up the process' memory maps: at 65,530 of them LLVM crashes."""
    yield
    maps = Path("/proc/self/maps")
    if next(TESTS_RUN) % 8 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def no_line_for_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print nothing about waits: a slow machine would print importing [2 s] before an error of one line."""
    monkeypatch.setattr(waiting, "PAUSES", dict.fromkeys(waiting.PAUSES, (threading.TIMEOUT_MAX,) * 2))


@pytest.fixture
def as_users_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts compile with XLA's own options: dear, but many steps then take less time."""
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """run_python(*arguments, devices=1, code=0): a Python process of its own, in tmp_path.

    The number of CPU devices is fixed when jax is imported, so whatever needs several of them runs here, as in
    `run_python("-c", source, devices=8)`; `run_python(ROOT / "train.py", "tiny", ...)` is a user's command line.
    Asserts the exit code and returns the CompletedProcess with its text.
    """

    def run(
        *arguments: object, devices: int = 1, code: int = 0, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
        }
        if devices > 1:  # collectives of all devices wait in one thread pool: with a thread per core they may deadlock
            environment["NPROC"] = str(4 * devices)
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        said = f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        assert done.returncode == code, f"exit code {done.returncode}, not {code}, of {command}\n{said}"
        return done

    return run
