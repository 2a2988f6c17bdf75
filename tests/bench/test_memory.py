"""`titans-jax bench memory`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax import cli
from titans_jax.bench import interleave, memory
from titans_jax.memory import PRESETS, miras, presets


@pytest.mark.slow
def test_the_timed_gradient_is_that_of_the_recurrence():
    rule, shape = presets.titans_linear(4), memory.Shape(2, 4)
    given, weights = memory.tokens(rule, shape, 8, chunk=4), memory.first_weights(rule, 2)
    cotangent = jax.random.normal(jax.random.key(2), given.q.shape)
    found = memory.gradient(miras(rule, chunk=4, implementation="chunked"))(weights, given, cotangent)

    def plain(weights, given):
        one, total = miras(rule, chunk=4, implementation="recurrent"), 0.0
        for head in range(2):
            at = jax.tree.map(lambda x: x[0, head], given)  # noqa: B023
            y, _, _ = one.update(one.init({name: w[head] for name, w in weights.items()}), *at)
            total += (y * cotangent[0, head]).sum()
        return total

    expected = jax.jit(jax.grad(plain, argnums=(0, 1)))(weights, given)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        np.testing.assert_allclose(
            dict(jax.tree_util.tree_leaves_with_path(found))[path], leaf, rtol=1e-3, atol=1e-5, err_msg=str(path)
        )
    assert float(jnp.abs(expected[1].gates.rate).max()) > 0


@pytest.mark.parametrize("rule", ["deltaproduct", "omeganet", "yaad"])
def test_tokens_are_what_every_rule_reads(rule):
    made = PRESETS[rule](8)
    given = jax.eval_shape(lambda: memory.tokens(made, memory.Shape(2, 8), 4, chunk=4))
    weights = jax.eval_shape(lambda: memory.first_weights(made, 2))
    y = jax.eval_shape(lambda w, x: memory.forward(miras(made, chunk=4), w, x), weights, given)
    assert y.shape == (1, 2, 4, 8)


ARGUMENTS = ["bench", "memory", "--rules", "titans_linear", "--engines", "chunked", "--shapes", "2x8", "--length", "8"]
NAMES = [
    f"titans_linear 2x8 chunked {kind}" for kind in ("forward", "forward and backward", "forward and backward bfloat16")
]


@pytest.mark.slow
def test_command_writes_what_it_measured_and_measures_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "CHUNK", 4)
    monkeypatch.setattr(interleave, "SIZE", 8)
    cost = iter([1.0, 3.0] * 99)
    monkeypatch.setattr(memory, "device_timer", lambda call: lambda: {"cpu": next(cost), "wall": 1.0})
    arguments = [*ARGUMENTS, "--rounds", "2", "--output-dir", str(tmp_path)]
    assert cli.main([*arguments, "--json", str(tmp_path / "copy" / "x.json")]) == 0
    out = capsys.readouterr().out
    assert f"| {NAMES[1]} |" in out and (tmp_path / "table.md").read_text() in out
    written = json.loads((tmp_path / "memory.json").read_text())
    assert (tmp_path / "copy" / "x.json").read_text() == (tmp_path / "memory.json").read_text()
    assert {"jax", "jaxlib", "processor", "cores", "devices"} <= written["machine"].keys()
    assert list(written["samples"]) == [f"round {n}: {name}" for n in (1, 2) for name in ["matmul", *NAMES]]
    row = written["found"][NAMES[1]]
    assert (row["heads"], row["head_dim"], row["engine"], row["matmul_dtype"]) == (2, 8, "chunked", "float32")
    assert row["flops_per_token"] == 3 * 2 * (2 * 8 * 8 * 5 + 2 * 4 * (8 + 8))
    assert row["cpu_ms"] == 1e6 * 2 / 8 and row["cpu_ms_least"] == 1e6 / 8  # of 1 and 3 seconds
    assert 0 < row["share_least"] <= row["share"] <= row["share_most"]
    assert json.loads((tmp_path / "result.json").read_text())[f"{NAMES[1]} share"] == row["share"]
    assert (tmp_path / "speed.png").is_file() and not (tmp_path / "rows.json").exists()


@pytest.mark.slow
def test_command_measures(tmp_path):
    arguments = ["bench", "memory", "--shapes", "2x8", "--length", "64", "--rounds", "1", "--output-dir", str(tmp_path)]
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "memory.json").read_text())["found"]
    times = [found[f"titans 2x8 chunked {kind}"]["cpu_ms"] for kind in ("forward", "forward and backward")]
    assert 0 < times[0] < times[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "titan"], "no rule named 'titan'; known are titans"),
        (["--engines", "fast"], "no engine named 'fast'; known are exact, delta, chunked, recurrent"),
        (["--engines", "exact"], "engines: none of exact serves titans"),
        (["--shapes", "4by64"], "shape '4by64': it must be heads x size, such as 4x64"),
        (["--length", "100"], "length: 100 tokens; it must be a multiple of the chunk, 64"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(arguments, message, tmp_path, capsys):
    assert cli.main(["bench", "memory", *arguments, "--output-dir", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_an_unknown_kind_or_option_exits_with_2(capsys):
    for arguments in (["bench", "memmory"], ["bench", "memory", "--round", "x"], ["bench", "memory", "--depth", "3"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 2
