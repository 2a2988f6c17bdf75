"""`titans-jax bench`: rows are trained as train.py trains, kept when interrupted, refused where they do not fit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from titans_jax import cli, config, metrics, training
from titans_jax.bench import interleave, optimizers, rules
from titans_jax.bench.fit import Fit, fit, program
from titans_jax.bench.report import Rows

SMALL = [
    *("--model.dim", "16", "--model.depth", "1", "--model.heads", "1", "--model.head-dim", "8"),
    *("--model.window", "16", "--data.sequence", "32", "--data.batch", "4", "--model.memory.chunk", "8"),
    *("--model.memory.heads", "2", "--model.memory.head-dim", "4", "--model.memory.conv", "0"),
    *("--train.eval-batches", "2", "--optim.chunk", "2"),
]
PLAIN = [*SMALL, "--model.block", "transformer"]


def small(*changes, steps=4):
    base = config.override(config.load("tiny"), [*PLAIN, *changes])
    return replace(base, train=replace(base.train, steps=steps))


def finished(losses, seconds=None):
    """A Fit of these losses, without a model."""
    return Fit(list(losses), seconds or [9.0] + [0.5] * (len(losses) - 1), 100, None, {"w": np.zeros((2, 3))})


@pytest.fixture
def bar():
    with metrics.progress(1, "test") as bar:
        yield bar


@pytest.mark.slow
def test_a_row_is_trained_as_train_py_trains(tmp_path, bar):
    experiment = small("--output-dir", str(tmp_path), "--train.log-every", "1", "--train.sample", "1")
    training.run(experiment)
    logged = [r["loss"] for r in metrics.read_records(tmp_path) if r["split"] == "train"]
    np.testing.assert_allclose(fit(experiment, bar).losses, logged, rtol=1e-4)


@pytest.mark.slow
def test_one_program_serves_every_seed_and_rate(bar):
    first, same = fit(small(), bar), fit(small(), bar)
    assert first.finite and len(first.losses) == len(first.seconds) == 4 and first.losses == same.losses
    other = small("--optim.peak-rate", "0.001", "--train.seed", "1")
    assert abs(fit(other, bar).losses[0] - first.losses[0]) > 1e-4  # other weights, other batches
    slower = fit(small("--optim.peak-rate", "0.001"), bar)
    assert slower.losses[0] == first.losses[0] and first.losses[-1] < slower.losses[-1]
    wild = fit(small("--optim.peak-rate", "1e30"), bar)
    assert not wild.finite and len(wild.losses) < 4
    assert program(other).step is program(small()).step
    assert program(other).step._cache_size() == 1


def test_rules_says_what_happened_to_each(tmp_path, monkeypatch):
    def trained(experiment, bar):
        rule = experiment.model.memory.rule
        if rule == "ttt_mlp":
            raise NotImplementedError("chunked: no\nexact: no")
        return finished({"titans": [4.0] * 37 + [2.0, 1.0], "deltanet": [5.0, math.nan]}[rule])

    monkeypatch.setattr(rules, "fit", trained)
    monkeypatch.setattr(rules, "state_bytes", lambda model, caches: 1234)
    forgotten = []
    monkeypatch.setattr(rules, "forget", lambda: forgotten.append(True))
    rows = Rows(tmp_path, {})
    table = rules.compare_rules(small(), ["titans", "deltanet", "ttt_mlp"], [], rows)
    assert len(forgotten) == 3  # each row's programs, before the next row compiles
    titans = rows.rows["titans"]
    assert (titans["first_loss"], titans["final_loss"], titans["fall"]) == (4.0, 1.0, 0.75)
    assert (titans["tokens_per_second"], titans["state_bytes"], titans["parameters"]) == (200, 1234, 6)
    assert "| titans | 4.000 | 1.000 | 75.0% | yes | 200 | 1,234 | 6 |" in table
    assert "| deltanet | 5.000 | - | - | no, at step 2 |" in table
    assert "| ttt_mlp | - | - | - | chunked: no exact: no |" in table
    json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    trained = []

    def until_interrupted(experiment, bar):
        if len(trained) == 1 and experiment.name == "deltanet":
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(experiment.name)
        return finished([4.0, 2.0])

    monkeypatch.setattr(rules, "fit", until_interrupted)
    monkeypatch.setattr(rules, "state_bytes", lambda model, caches: 1)
    arguments = ["bench", "rules", "--rules", "titans,deltanet", "--steps", "2", "--output-dir", str(tmp_path)]
    assert cli.main(arguments) == 75
    assert "run the same command again to continue" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
    assert cli.main([*arguments, "--json", str(tmp_path / "copy" / "rows.json")]) == 0
    assert trained == ["titans", "interrupted", "deltanet"]
    assert json.loads((tmp_path / "result.json").read_text())["fall_deltanet"] == 0.5
    assert (tmp_path / "copy/rows.json").read_text() == (tmp_path / "rows.json").read_text()
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out

    assert cli.main([*arguments, "--train.seed", "3"]) == 2
    assert "holds rows with experiment.train.seed = 0, not 3; give another --output-dir" in capsys.readouterr().err


@pytest.mark.slow
def test_rules_command_trains_reports_and_weighs_the_state(tmp_path, capsys):
    arguments = ["bench", "rules", "--rules", "linear_attention", "--steps", "2", "--output-dir", str(tmp_path)]
    assert cli.main([*arguments, *SMALL, "--model.block", "lmm"]) == 0
    row = json.loads((tmp_path / "rows.json").read_text())["rows"]["linear_attention"]
    assert row["finite"] and row["steps"] == 2 and 5 < row["first_loss"] < 7
    # float32: two heads of a 4 x 4 dual and anchor; the memory's step, the document's age
    assert row["state_bytes"] == 4 * (2 * 2 * 4 * 4 + 2)


def test_every_rule_and_the_configs_that_are_more_than_a_rule_are_compared_by_default(monkeypatch):
    found = config.available() | {"hope": "HOPE"}
    monkeypatch.setattr(config, "available", lambda: found)
    names = rules.default_rules()
    assert names[: len(rules.PRESETS)] == list(rules.PRESETS) and "config:hope" in names
    experiment = rules._experiment(small(steps=7), "config:mag", ["--model.dim", "16"])
    assert (experiment.model.block, experiment.model.dim, experiment.train.steps) == ("mag", 16, 7)


def test_optimizers_are_tuned_on_seed_0_and_reported_on_others(tmp_path, monkeypatch):
    losses = {(1e-3, 0): 3.0, (1e-2, 0): 2.0, (1e-1, 0): math.nan, (1e-2, 1): 2.5, (1e-2, 2): 2.1}
    seen = []

    def trained(experiment, bar):
        at = experiment.optim.peak_rate, experiment.train.seed
        seen.append((experiment.optim.name, *at))
        loss = losses[at] + (experiment.optim.name == "m3")
        return finished([6.0, loss])

    monkeypatch.setattr(optimizers, "fit", trained)
    monkeypatch.setattr(optimizers, "model_of", lambda done: done.losses[-1])
    monkeypatch.setattr(optimizers, "_held_out", lambda experiment, model: model)
    cost = {"step_cost": 1.25, "update_cost": 2.0}
    monkeypatch.setattr(optimizers, "step_costs", lambda experiments, base: dict.fromkeys(experiments, cost))
    rows = Rows(tmp_path, {})
    table, found = optimizers.compare_optimizers(small(), ["adamw", "m3"], [1e-3, 1e-2, 1e-1], 2, rows)
    assert len(seen) == 10 and seen[:5] == [("adamw", *at) for at in losses]
    assert found["adamw"]["rate"] == 1e-2 and found["adamw"]["losses"] == [2.5, 2.1]
    assert found["m3"]["loss"] == pytest.approx(3.3) and found["m3"]["loss_spread"] == pytest.approx(0.4 / 2**0.5)
    assert "| adamw | 0.01 | 2.3000 +- 0.2828 (2) | 1.25 | 2.00 |" in table
    again, _ = optimizers.compare_optimizers(small(), ["adamw", "m3"], [1e-3, 1e-2, 1e-1], 2, Rows(tmp_path, {}))
    assert again == table and len(seen) == 10
    edge, _ = optimizers.compare_optimizers(small(), ["m3"], [1e-2, 1e-1], 1, Rows(tmp_path, {}))
    assert "| m3 | 0.01, the grid's edge | 3.5000 (1) |" in edge and len(seen) == 10
    losses[1e-2, 3] = math.nan
    table, _ = optimizers.compare_optimizers(small(), ["m3"], [1e-3, 1e-2], 3, Rows(tmp_path, {}))
    assert "| not finite |" in table


@pytest.mark.slow
def test_optimizers_command_trains_and_times(tmp_path):
    arguments = ["bench", "optimizers", "--optimizers", "muon", "--rates", "1e-2", "--seeds", "1", "--steps", "4"]
    assert cli.main([*arguments, "--output-dir", str(tmp_path), *PLAIN]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert 3 < result["muon_loss"] < 7 and result["muon_rate"] == 0.01
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert list(rows) == ["muon rate 0.01 seed 1", "cost of muon"]  # one rate: nothing to choose
    cost = rows["cost of muon"]["muon"]
    assert cost["step_cost"] == cost["update_cost"] == 1  # against itself
    assert cost["update_seconds"] > 0 and cost["step_seconds"] > 0


def test_a_block_of_calls_is_timed_whole_and_in_turn(monkeypatch):
    clock, calls = [0.0], []

    def call(name, seconds):
        clock[0] += seconds * (1 + 9 * (len(calls) == 20))  # one call is held up
        calls.append(name)

    monkeypatch.setattr(interleave.time, "perf_counter", lambda: clock[0])
    medians = interleave.medians({"a": lambda: call("a", 1.0), "b": lambda: call("b", 3.0)}, 4, "test")
    assert medians == {"a": 1.0, "b": 3.0}
    assert calls[2:14] == ["a"] * 4 + ["b"] * 4 + ["a"] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rules", "--rules", "titan"], "no rule named 'titan'; known are titans"),
        (["rules", "--rules", "config:hop"], "no config named 'hop'"),
        (["rules", "--config", "tinny"], "no config named 'tinny'; did you mean tiny?"),
        (["rules", "--model.dpeth", "3"], "no option --model.dpeth; did you mean --model.depth?"),
        (["optimizers", "--optimizers", "adamv"], "name 'adamv' is unknown; did you mean 'adamw'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(arguments, message, tmp_path, capsys):
    assert cli.main(["bench", *arguments, "--output-dir", str(tmp_path / "rows")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_other_commands_take_no_options_of_an_experiment(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["eval", "--checkpoint", "nowhere", "--model.dim", "3"])
    assert exit_.value.code == 2
    assert "unrecognized arguments: --model.dim 3" in capsys.readouterr().err
