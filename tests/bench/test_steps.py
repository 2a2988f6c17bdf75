"""`titans-jax bench model, decode`: what is timed is what is said, at small sizes."""

import json

import jax
import numpy as np
import pytest

from titans_jax import cli
from titans_jax.bench import interleave, steps
from titans_jax.decode import generate
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.training.step import define

SMALL = ModelConfig(
    "mac", dim=16, depth=1, heads=1, head_dim=8, segment=8, memory=MemoryConfig(heads=1, head_dim=8, chunk=8)
)


@pytest.fixture
def given(monkeypatch):
    """Timers that say how often their call was made ready, and no time."""
    monkeypatch.setattr(interleave, "SIZE", 8)
    made = []

    def timer(name, cost):
        made.append(name)
        return lambda: {"cpu": cost, "wall": cost / 2}

    return made, timer


def test_model_command_compares_steps_and_the_input(tmp_path, monkeypatch, given):
    made, timer = given
    monkeypatch.setattr(steps, "training_step", lambda block, length, batch: timer(block, 3.0 if "," in block else 2.0))
    monkeypatch.setattr(steps, "device_timer", lambda call: timer("batch", 0.002))
    arguments = ["bench", "model", "--blocks", "mac,mag", "--rounds", "1", "--batch", "2"]
    assert cli.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    assert made == ["transformer", "transformer,mac", "transformer,mag", "batch"]
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert written["ratios"]["transformer,mag over transformer"]["times_cpu"] == 1.5
    assert written["ratios"]["next batch over a step of transformer"]["times_wall"] == pytest.approx(0.001)
    assert written["found"]["transformer"]["cpu_ms"] == pytest.approx(1e6 * 2 / 2048)
    assert steps.model_of("transformer,mac").pattern == ("transformer", "mac") and steps.model_of("mac").depth == 4


def test_the_input_that_is_timed_is_what_a_training_reads(monkeypatch):
    monkeypatch.setattr(steps, "device_timer", lambda call: call)
    batch = steps.next_batch(64, 1)()
    assert batch["inputs"].shape == (1, 64) and (batch["inputs"][0, 1:] == batch["targets"][0, :-1]).all()


def test_an_unknown_block_is_refused_in_one_line(tmp_path, capsys):
    assert cli.main(["bench", "model", "--blocks", "transformer", "--output-dir", str(tmp_path)]) == 2
    assert "no block with a memory named 'transformer'; known are lmm, mac, mag, mal" in capsys.readouterr().err


def test_decode_command_compares_with_the_first(tmp_path, monkeypatch, given):
    made, timer = given

    def next_tokens(model, context, sequences):
        return timer((model, context, sequences), 1.0 if context < 100 else 1.1)

    monkeypatch.setattr(steps, "next_tokens", next_tokens)
    arguments = ["bench", "decode", "--contexts", "64,4096", "--sequences", "8,1", "--rounds", "1"]
    assert cli.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    ratios = json.loads((tmp_path / "measurements.json").read_text())["ratios"]
    assert ratios["1 at once after 4,096 over 1 at once after 64"]["times_cpu"] == pytest.approx(1.1)
    assert ratios["8 at once after 64 over 1 at once after 64"]["times_wall"] == 1 / 8  # of a token
    assert made == [("transformer,mac", context, number) for context in (64, 4096) for number in (1, 8)]


@pytest.mark.slow
def test_writing_goes_on_as_generate_does(monkeypatch):
    monkeypatch.setattr(steps, "WRITTEN", 3)
    monkeypatch.setattr(steps, "device_timer", lambda call: call)
    call = steps.next_tokens(SMALL, 9, 2)
    first = np.stack([np.asarray(x) for x in call() + call()], 1)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 9), np.int32)
    definition = define(SMALL)
    model = definition.model(jax.jit(definition.init)(jax.random.key(0)))
    np.testing.assert_array_equal(first, generate(model, tokens, length=6, temperature=0))


@pytest.mark.slow
def test_the_layer_that_peers_time_runs():
    assert steps.memory_layer(64, 2)()["cpu"] > 0
