"""`titans-jax bench growth`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax import cli
from titans_jax.bench import length_scaling
from titans_jax.bench.processes import once


def test_command_weighs_each_length_in_its_own_process(tmp_path, monkeypatch, capsys):
    asked = []

    def once(target, length):
        _, kind = target.split(":")

        def take():
            asked.append((kind, length))
            slower = 1.2 if (kind, length) == ("training", 4096) else 1.0
            return {"cpu": length * slower / 1e4, "wall": 1.0, "peak_bytes": 10**9 + 9 * length, "bytes_per_token": 9}

        return take

    monkeypatch.setattr(length_scaling, "once", once)
    arguments = ["bench", "growth", "--lengths", "4096,2048", "--rounds", "2", "--output-dir", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert asked == 2 * [(kind, length) for kind in length_scaling.PASSES for length in (1024, 2048, 4096)]
    found = json.loads((tmp_path / "growth.json").read_text())["found"]
    assert found["training 4096"]["cpu_over_least"] == pytest.approx(1.2)
    assert found["streaming 4096"]["cpu_over_least"] == 1 and found["streaming 4096"]["bytes_per_token"] == 9
    assert "| training 2048 | 100 (100 to 100) |" in capsys.readouterr().out


@pytest.mark.slow
def test_training_counts_what_its_tokens_hold():
    # in a fresh process: here, memory that other tests left would be used again
    taken = once(f"{length_scaling.__name__}:training", length=4096)()
    if "bytes_per_token" not in taken:
        pytest.skip("this system does not let a process forget its peak")
    inputs_and_gradients = 7 * 256 * 4  # q, k, v, the cotangent, and the gradients of q, k, v
    assert inputs_and_gradients < taken["bytes_per_token"] < 1e6
    assert taken["temp_bytes"] > 0 and taken["cpu"] > 0


def test_lengths_that_are_no_blocks_are_refused_in_one_line(tmp_path, capsys):
    assert cli.main(["bench", "growth", "--lengths", "1000", "--output-dir", str(tmp_path)]) == 2
    assert "lengths: 1000 tokens; each must be a multiple of 1024" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_in_blocks_is_the_whole(monkeypatch):
    monkeypatch.setattr(length_scaling, "_weighed", lambda begin, length: begin())
    short, long = length_scaling.streaming(1024)(), length_scaling.streaming(3072)()
    assert int(np.max(short.step)) == 1024 and int(np.max(long.step)) == 3072
    assert float(jnp.abs(short.dual["w1"] - long.dual["w1"]).max()) > 0
