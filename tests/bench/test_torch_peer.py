"""`titans-jax bench peers`: beside titans-pytorch, which the slow lane really runs where it is installed."""

import contextlib
import importlib.util
import json
import subprocess
import sys

import pytest

from titans_jax import cli
from titans_jax.bench import interleave, steps


def test_an_interpreter_without_torch_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "no")
    monkeypatch.setattr(steps.subprocess, "run", lambda *args, **_: failed)
    assert cli.main(["bench", "peers", "--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{sys.executable} has no titans-pytorch; pip install titans-jax[parity]" in said and said.count("\n") == 1


def test_an_interpreter_that_is_not_there_is_refused_in_one_line(tmp_path, capsys):
    assert cli.main(["bench", "peers", "--python", str(tmp_path / "python"), "--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'python'}: no such interpreter" in said and said.count("\n") == 1


def test_each_library_in_its_own_process_and_ratios_of_a_token(tmp_path, monkeypatch, capsys):
    started = {}

    @contextlib.contextmanager
    def process(target, spec, python):
        started[target, *sorted(spec.items())] = python
        cost = 64.0 if spec.get("chunk") == 1 else 2.0
        yield lambda: {"cpu": cost, "wall": cost / 2, "peak_bytes": 1}

    monkeypatch.setattr(interleave, "process", process)
    monkeypatch.setattr(steps, "_version", lambda python: f"versions of {python}")
    monkeypatch.setattr(interleave, "SIZE", 8)
    arguments = ["bench", "peers", "--python", "other", "--batch", "2", "--rounds", "1", "--output-dir", str(tmp_path)]
    assert cli.main(arguments) == 0
    theirs = {key[0] for key, python in started.items() if python == "other"}
    ours = {key[0] for key, python in started.items() if python == sys.executable}
    assert all("torch_peer" in target for target in theirs) and not any("torch_peer" in target for target in ours)
    assert len(started) == 8
    written = json.loads((tmp_path / "measurements.json").read_text())
    row = written["ratios"]["titans-pytorch memory, chunk_size 1 over memory of titans-pytorch's parts"]
    assert row["times_cpu"] == (64 / (2 * 256)) / (2 / (2 * 1024))  # of one token each
    assert written["found"]["titans-pytorch memory, chunk_size 64"]["cpu_ms"] == 1e6 * 2 / (2 * 1024)
    assert "versions of other; each library on" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("titans_pytorch"), reason="needs the extra: titans-jax[parity]")
def test_command_times_both_libraries(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "CONTEXT", 64)
    monkeypatch.setattr(steps, "LENGTH", 256)
    assert cli.main(["bench", "peers", "--rounds", "1", "--output-dir", str(tmp_path)]) == 0
    ratios = json.loads((tmp_path / "measurements.json").read_text())["ratios"]
    exact, coarse = (
        ratios[f"titans-pytorch memory, chunk_size {chunk} over memory of titans-pytorch's parts"] for chunk in (1, 64)
    )
    assert exact["times_cpu"] > coarse["times_cpu"]
