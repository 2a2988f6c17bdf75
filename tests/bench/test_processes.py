"""A subject in a process of its own: its answers, its end, what it says when it cannot go on."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from titans_jax.bench import processes

ECHO = "a_timer:echo"


@pytest.fixture(autouse=True)
def a_timer(tmp_path, monkeypatch):
    """A module with a timer without work; its sample holds what it was called with."""
    text = 'def echo(**spec):\n    return lambda: {"cpu": 0.0, "wall": 0.0} | spec\n'
    (tmp_path / "a_timer.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.fixture
def children(monkeypatch):
    """The processes that are started."""
    found, popen = [], subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *a, **k: found.append(popen(*a, **k)) or found[-1])
    return found


def test_a_process_answers_each_question_and_ends_with_the_block(children):
    with processes.process(ECHO, {"length": 7}) as ask:
        first, second = ask(), ask()
        assert len(children) == 1 and children[0].poll() is None
    assert first["length"] == second["length"] == 7 and first["cpu"] == 0 and first["peak_bytes"] > 1e6
    assert children[0].poll() is not None


def test_the_process_imports_no_jax_and_waits_asleep(monkeypatch, children):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import sys, titans_jax.bench.torch_peer; assert not {'jax', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    children.clear()
    with processes.process(ECHO, {}):
        if sys.platform == "linux":
            assert b"OMP_WAIT_POLICY=PASSIVE" in Path(f"/proc/{children[0].pid}/environ").read_bytes()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("titans_jax.bench.processes:nothing", "its process ended: AttributeError.*nothing"),
        ("titans_jax.bench.nowhere:echo", "its process ended: ModuleNotFoundError.*nowhere"),
    ],
)
def test_a_process_that_cannot_begin_says_why(target, message):
    with pytest.raises(ChildProcessError, match=message), processes.process(target, {}):
        pass


def test_the_peak_begins_anew():
    def touch(size: int) -> None:  # pages of the system's own: an array may get what this process held and freed before
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE) as pages:
            pages[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)

    before = processes.reset_peak()
    if before is None:
        pytest.skip("this system does not let a process forget its peak")
    touch(200 << 20)
    high = processes.peak_bytes()
    now = processes.reset_peak()
    assert high - before > 190 << 20 and now < high and processes.peak_bytes() < high - (100 << 20)
    touch(100 << 20)
    assert processes.peak_bytes() - now > 90 << 20
