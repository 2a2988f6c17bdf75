"""`titans-jax bench model, decode, streams, compile`: what is timed is what is said, at small sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from titans_jax import cli
from titans_jax.bench import compiling, decode, interleave, steps
from titans_jax.nn import LM, MemoryConfig, ModelConfig

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
    written = json.loads((tmp_path / "model.json").read_text())
    assert written["ratios"]["transformer,mag over transformer"]["times_cpu"] == 1.5
    assert written["ratios"]["next batch over a step of transformer"]["times_wall"] == pytest.approx(0.001)
    assert written["found"]["transformer"]["cpu_ms"] == pytest.approx(1e6 * 2 / 2048)
    assert steps.model_of("transformer,mac").pattern == ("transformer", "mac") and steps.model_of("mac").depth == 4


def test_the_input_that_is_timed_is_what_a_training_reads():
    batch = steps.reader(64, 1)()
    assert batch["inputs"].shape == (1, 64) and (batch["inputs"][0, 1:] == batch["targets"][0, :-1]).all()


def test_an_unknown_block_is_refused_in_one_line(tmp_path, capsys):
    assert cli.main(["bench", "model", "--blocks", "transformer", "--output-dir", str(tmp_path)]) == 2
    assert "no block with a memory named 'transformer'; known are lmm, mac, mag, mal" in capsys.readouterr().err


@pytest.mark.slow
def test_a_later_stream_stands_where_one_that_read_stands():
    later, plain = decode.Later(SMALL, rngs=nnx.Rngs(0)), LM(SMALL, rngs=nnx.Rngs(0))
    later.context[...] = jnp.int32(13)
    tokens = np.zeros((2, 13), np.int32)
    _, read, _ = nnx.jit(lambda model, tokens: model(tokens, model.init_state(2)))(plain, tokens)
    set_ = nnx.jit(lambda model: model.init_state(2))(later)
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(jnp.shape, set_)
    where = jax.tree_util.tree_leaves_with_path
    counters = {path: leaf for path, leaf in where(read) if jnp.issubdtype(leaf.dtype, jnp.integer)}
    assert len(counters) == 3  # the memory's step, that of the segment's cache, which MAC leaves alone, the age
    for path, leaf in where(set_):
        if path in counters and "cache" not in str(path):
            np.testing.assert_array_equal(leaf, counters[path], err_msg=str(path))


def test_decode_and_streams_commands_compare_with_the_first(tmp_path, monkeypatch, given, capsys):
    made, timer = given
    monkeypatch.setattr(decode, "writer", lambda block, context, sequences=1, read=False: (context, sequences, read))
    monkeypatch.setattr(decode, "device_timer", lambda call: timer(call, 1.0 if call[0] < 100 else 1.1))
    assert cli.main(["bench", "decode", "--contexts", "64,4096", "--rounds", "1", "--output-dir", f"{tmp_path}/d"]) == 0
    ratios = json.loads((tmp_path / "d" / "decode.json").read_text())["ratios"]
    assert ratios["after 4,096 over after 64"]["times_cpu"] == pytest.approx(1.1)
    assert "The context was not read" in capsys.readouterr().out
    assert cli.main(["bench", "streams", "--sequences", "8,1", "--rounds", "1", "--output-dir", f"{tmp_path}/s"]) == 0
    ratios = json.loads((tmp_path / "s" / "streams.json").read_text())["ratios"]
    assert ratios["1 at once over 8 at once"]["times_wall"] == 8  # a call of as much time gives as many tokens more
    assert made == [(64, 1, False), (4096, 1, False), (64, 1, False), (64, 8, False)]


@pytest.mark.slow
def test_writing_goes_on_as_generate_does(monkeypatch):
    monkeypatch.setattr(steps, "model_of", lambda block: SMALL)
    monkeypatch.setattr(decode, "WRITTEN", 3)
    call = decode.writer("mac", 9, sequences=2, read=True)
    first = np.stack([np.asarray(x) for x in call() + call()], 1)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 9), np.int32)
    from titans_jax.decode import generate

    model = LM(SMALL, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(first, generate(model, tokens, length=6, temperature=0))


def test_compile_command_takes_each_sample_in_a_fresh_process(tmp_path, monkeypatch, capsys):
    asked = []

    def once(target, **spec):
        def take():
            asked.append((target.partition(":")[2], *spec.values()))
            return {"cpu": 2.0 + spec.get("layers", 0) / 24, "wall": 2.0, "trace_cpu": 0.5, "lower_cpu": 0.25} | {
                "compile_cpu": 1.25,
                "peak_bytes": 1,
            }

        return take

    monkeypatch.setattr(compiling, "once", once)
    assert cli.main(["bench", "compile", "--layers", "24,12", "--rounds", "2", "--output-dir", str(tmp_path)]) == 0
    assert asked == [("step_of_tiny", 12), ("step_of_tiny", 24), ("memory_alone", 1024)] * 2
    written = json.loads((tmp_path / "compile.json").read_text())
    name = "training step of tiny, 24 layers over training step of tiny, 12 layers"
    assert written["ratios"][name]["times_cpu"] == pytest.approx(3 / 2.5)
    assert written["found"]["memory alone"]["cpu_s"] == 2
    assert "| memory alone | 2 (2 to 2) | 2 | 0.50 | 0.25 | 1.25 |" in capsys.readouterr().out


def test_stages_are_those_of_one_program(monkeypatch):
    monkeypatch.setattr(compiling.jax.config, "update", lambda *_: None)
    traced = []

    def function(x):
        traced.append(x.shape)
        return x @ x

    taken = compiling._stages(lambda: jax.jit(function), (jax.ShapeDtypeStruct((3, 3), jnp.float32),))()
    assert traced == [(3, 3)]
    assert taken["cpu"] == pytest.approx(sum(taken[f"{stage}_cpu"] for stage in compiling.STAGES))


@pytest.mark.slow
def test_the_layer_that_peers_time_runs():
    assert steps.memory_layer(64, 2)()["cpu"] > 0
