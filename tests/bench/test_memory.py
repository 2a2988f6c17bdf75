"""`titans-jax bench memory`."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax import cli
from titans_jax.bench import interleave, memory, processes, tpu
from titans_jax.memory import PRESETS, miras, presets

CASE = {"rule": "titans_linear", "shape": (2, 4), "length": 8, "kind": "training", "chunk": 4}


@pytest.mark.slow
def test_the_timed_gradient_is_that_of_the_recurrence():
    made = memory.program(**CASE)
    weights, given, cotangent = made.inputs()
    found = made.function(weights, given, cotangent)

    def plain(weights, given):
        one, total = miras(presets.titans_linear(4), chunk=4, implementation="recurrent"), 0.0
        for head in range(2):
            at = jax.tree.map(lambda x: x[head], given)  # noqa: B023
            y, _, _ = one.update(one.init({name: w[head] for name, w in weights.items()}), *at)
            total += (y * cotangent[head]).sum()
        return total

    expected = jax.jit(jax.grad(plain, argnums=(0, 1)))(weights, given)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        np.testing.assert_allclose(
            dict(jax.tree_util.tree_leaves_with_path(found))[path], leaf, rtol=1e-3, atol=1e-5, err_msg=str(path)
        )
    assert float(jnp.abs(expected[1].gates.rate).max()) > 0


@pytest.mark.parametrize("rule", ["deltaproduct", "omeganet", "yaad", "tnt"])
def test_tokens_are_what_every_rule_reads(rule):
    made = memory.program(rule, (2, 8), 2048, "forward", 16)
    assert jax.eval_shape(made.function, *jax.eval_shape(made.inputs)).shape == (2, 2048, 8)
    assert rule in (*PRESETS, memory.TNT)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["titans", "tnt"])
def test_a_stream_in_blocks_is_the_whole(monkeypatch, rule):
    monkeypatch.setattr(memory, "BLOCK", 16)
    monkeypatch.setattr(memory, "GLOBAL", 16)
    monkeypatch.setattr(memory, "device_timer", lambda call: call())
    case = CASE | {"rule": rule, "kind": "stream"}
    short, long = (memory.timer(alone=False, **case | {"length": length}) for length in (16, 48))
    if rule == "tnt":
        short, long = short.global_memory, long.global_memory
    assert int(np.max(short.step)) == 16 and int(np.max(long.step)) == 48
    assert float(jnp.abs(short.dual["w1"] - long.dual["w1"]).max()) > 0


@pytest.mark.slow
def test_training_counts_what_its_tokens_hold():
    # in a process of its own: here, memory that other tests left would be used again
    case = {"rule": "titans", "shape": (4, 64), "length": 4096, "kind": "training", "chunk": 64, "alone": True}
    with processes.process("titans_jax.bench.memory:timer", case) as ask:
        taken = ask()
    if "bytes_per_token" not in taken:
        pytest.skip("this system does not let a process forget its peak")
    inputs_and_gradients = 7 * 256 * 4  # q, k, v, the cotangent, and the gradients of q, k, v
    assert inputs_and_gradients < taken["bytes_per_token"] < 1e6 and taken["cpu"] > 0


ARGUMENTS = ["bench", "memory", "--rules", "titans_linear", "--shapes", "2x8", "--lengths", "8", "--chunk", "4"]
NAMES = [f"titans_linear 2x8 8 {kind}" for kind in ("forward", "training", "training-bfloat16")]


def test_command_writes_what_it_measured_and_measures_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(interleave, "SIZE", 8)
    cost = iter([1.0, 3.0] * 99)
    monkeypatch.setattr(memory, "timer", lambda **case: lambda: {"cpu": next(cost), "wall": 1.0})
    arguments = [*ARGUMENTS, "--rounds", "2", "--output-dir", str(tmp_path)]
    assert cli.main([*arguments, "--json", str(tmp_path / "copy" / "x.json")]) == 0
    out = capsys.readouterr().out
    assert f"| {NAMES[1]} |" in out and (tmp_path / "table.md").read_text() in out
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert (tmp_path / "copy" / "x.json").read_text() == (tmp_path / "measurements.json").read_text()
    assert {"jax", "jaxlib", "processor", "cores", "devices"} <= written["machine"].keys()
    assert list(written["rows"]) == [f"round {n}: {name}" for n in (1, 2) for name in ["matmul", *NAMES]]
    row = written["found"][NAMES[1]]
    assert (row["rule"], row["shape"], row["pass"], row["chunk"]) == ("titans_linear", [2, 8], "training", 4)
    assert row["flops_per_token"] == pytest.approx(3 * 2 * (2 * 8 * 8 * 5 + 2 * 4 * (8 + 8)), rel=0.1)  # and decays
    assert row["cpu_ms"] == 1e6 * 2 / 8 and row["cpu_ms_least"] == 1e6 / 8  # of 1 and 3 seconds
    assert row["share_least"] <= row["share"] <= row["share_most"]
    assert json.loads((tmp_path / "result.json").read_text())[f"{NAMES[1]} share"] == row["share"]
    assert (tmp_path / "speed.png").is_file() and not (tmp_path / "rows.json").exists()


def test_lengths_are_compared_each_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    asked = []

    @contextlib.contextmanager
    def process(target, spec, python):
        kind, length = spec["kind"], spec["length"]
        assert target == "titans_jax.bench.memory:timer" and spec["alone"]
        slower = 1.2 if (kind, length) == ("training", 4096) else 1.0

        def take():
            asked.append((kind, length))
            return {"cpu": length * slower / 1e4, "wall": 1.0, "peak_bytes": 10**9, "bytes_per_token": 9}

        yield take

    monkeypatch.setattr(interleave, "process", process)
    monkeypatch.setattr(interleave, "SIZE", 8)
    arguments = ["bench", "memory", "--lengths", "4096,1024", "--passes", "training,stream", "--shapes", "4x64"]
    assert cli.main([*arguments, "--alone", "--rounds", "2", "--output-dir", str(tmp_path)]) == 0
    assert asked == 2 * [(kind, length) for length in (1024, 4096) for kind in ("training", "stream")]
    written = json.loads((tmp_path / "measurements.json").read_text())
    ratio = written["ratios"]["titans 4x64 4,096 training over titans 4x64 1,024 training"]
    assert ratio["times_cpu"] == pytest.approx(1.2)
    assert written["found"]["titans 4x64 4,096 stream"]["bytes_per_token"] == 9
    assert "| titans 4x64 1,024 stream | 100 (100 to 100) |" in capsys.readouterr().out


@pytest.mark.slow
def test_command_measures(tmp_path):
    arguments = ["--rules", "titans,tnt", "--chunk", "16", "--shapes", "2x8", "--lengths", "2048"]
    arguments += ["--passes", "forward,training", "--rounds", "1", "--output-dir", str(tmp_path)]
    assert cli.main(["bench", "memory", *arguments]) == 0
    written = json.loads((tmp_path / "measurements.json").read_text())
    times = [written["found"][f"titans 2x8 2,048 {kind}"]["cpu_ms"] for kind in ("forward", "training")]
    assert 0 < times[0] < times[1]
    assert written["ratios"]["tnt 2x8 2,048 training over titans 2x8 2,048 training"]["times_cpu"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "titan"], "no rule named 'titan'; known are titans"),
        (["--passes", "backward"], "no pass named 'backward'; known are forward, training, training-bfloat16, stream"),
        (["--lengths", "100"], "lengths: 100 tokens; each must be a multiple of 64"),
        (["--lengths", "1088", "--passes", "stream"], "lengths: 1088 tokens; each must be a multiple of 1024"),
        (["--lengths", "3072", "--rules", "titans,tnt"], "lengths: 3072 tokens; each must be a multiple of 2048"),
        (["--cycles"], "--cycles needs the TPU's compiler; pip install titans-jax[tpu]"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tpu, "available", lambda: False)
    assert cli.main(["bench", "memory", *arguments, "--output-dir", str(tmp_path / "x")]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1


def test_an_unknown_kind_or_option_exits_with_2(capsys):
    of_memory = ["--round", "x"], ["--depth", "3"], ["--shapes", "4by64"], ["--shapes", "0x4"]
    for arguments in (["bench", "memmory"], *(["bench", "memory", *words] for words in of_memory)):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
