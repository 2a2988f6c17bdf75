"""`titans-jax bench`: rows are trained as train.py trains, kept when interrupted, refused where they do not fit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from titans_jax import cli, config, metrics, training
from titans_jax.bench import comparisons
from titans_jax.bench import fit as fits
from titans_jax.bench.fit import Fit, fit, program
from titans_jax.bench.report import Rows
from titans_jax.optim.build import OPTIMIZERS

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


def finished(losses, model=None):
    """A Fit of these losses, and a model that stands for one."""

    class Stands:
        def model(self, params):
            return model

    seconds = [9.0] + [0.5] * (len(losses) - 1)
    return Fit(list(losses), seconds, 100, Stands(), {"w": np.zeros((2, 3))})


@pytest.fixture
def bar():
    with metrics.Progress(1, "test") as bar:
        yield bar


@pytest.mark.slow
def test_a_row_is_trained_as_train_py_trains(tmp_path, bar):
    experiment = small("--output-dir", str(tmp_path), "--train.log-every", "1", "--train.sample", "1")
    training.run(experiment)
    logged = [r["loss"] for r in metrics.read_records(tmp_path) if r["split"] == "train"]
    np.testing.assert_allclose(fit(experiment, bar).losses, logged, rtol=1e-4)


@pytest.mark.slow
def test_one_program_serves_every_seed(bar):
    first, same = fit(small(), bar), fit(small(), bar)
    assert first.finite and len(first.losses) == len(first.seconds) == 4 and first.losses == same.losses
    other = small("--train.seed", "1")
    assert abs(fit(other, bar).losses[0] - first.losses[0]) > 1e-4  # other weights, other batches
    assert program(other).step is program(small()).step and program(other).step._cache_size() == 1
    slower = fit(small("--optim.peak-rate", "0.001"), bar)
    assert slower.losses[0] == pytest.approx(first.losses[0]) and first.losses[-1] < slower.losses[-1]
    wild = fit(small("--optim.peak-rate", "1e30"), bar)
    assert not wild.finite and len(wild.losses) < 4


def test_rules_says_what_happened_to_each(tmp_path, monkeypatch):
    def trained(experiment, bar):
        return finished({"titans": [4.0] * 37 + [2.0, 1.0], "deltanet": [5.0, math.nan]}[experiment.model.memory.rule])

    monkeypatch.setattr(comparisons, "fit", trained)
    monkeypatch.setattr(comparisons, "state_bytes", lambda model, caches: 1234)
    forgotten = []
    monkeypatch.setattr(fits, "forget", lambda: forgotten.append(True))
    rows = Rows(tmp_path, {})
    report = comparisons.rules(small(), ["titans", "deltanet"], [], rows)
    assert len(forgotten) == 3  # before each row, and at the end
    titans = report.rows["titans"]
    assert (titans["first_loss"], titans["final_loss"], titans["fall"]) == (4.0, 1.0, 0.75)
    assert (titans["tokens_per_second"], titans["state_bytes"], titans["parameters"]) == (200, 1234, 6)
    assert "| titans | 4.000 | 1.000 | 75.0% | yes | 200 | 1,234 | 6 |" in report.table()
    assert "| deltanet | 5.000 | - | - | no, at step 2 |" in report.table()
    json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    trained = []

    def until_interrupted(experiment, bar):
        rule = experiment.model.memory.rule
        if len(trained) == 1 and rule == "deltanet":
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(rule)
        return finished([4.0, 2.0])

    monkeypatch.setattr(comparisons, "fit", until_interrupted)
    monkeypatch.setattr(comparisons, "state_bytes", lambda model, caches: 1)
    arguments = ["bench", "rules", "--rules", "titans,deltanet", "--steps", "2", "--output-dir", str(tmp_path)]
    assert cli.main(arguments) == 75
    assert "run the same command again to continue" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
    assert cli.main([*arguments, "--json", str(tmp_path / "copy" / "rows.json")]) == 0
    assert trained == ["titans", "interrupted", "deltanet"]
    assert json.loads((tmp_path / "result.json").read_text())["deltanet fall"] == 0.5
    assert (tmp_path / "copy/rows.json").read_text() == (tmp_path / "measurements.json").read_text()
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out

    assert cli.main([*arguments, "--train.seed", "3"]) == 2
    assert "holds rows with experiment.train.seed = 0, not 3; give another --output-dir" in capsys.readouterr().err


@pytest.mark.slow
def test_rules_command_trains_reports_and_weighs_the_state(tmp_path, capsys):
    arguments = ["bench", "rules", "--rules", "linear_attention", "--steps", "2", "--output-dir", str(tmp_path)]
    assert cli.main([*arguments, *SMALL, "--model.block", "lmm"]) == 0
    row = json.loads((tmp_path / "measurements.json").read_text())["found"]["linear_attention"]
    assert row["finite"] == "yes" and 5 < row["first_loss"] < 7
    # float32: two heads of a 4 x 4 dual, anchor and first weights; the memory's step, the document's age
    assert row["state_bytes"] == 4 * (2 * 3 * 4 * 4 + 2)


def test_every_rule_and_the_configs_that_are_more_than_a_rule_are_compared_by_default(tmp_path, monkeypatch):
    compared = {}
    monkeypatch.setattr(comparisons, "train_all", lambda experiments, *_: compared.update(experiments) or {})
    comparisons.rules(small(steps=7), None, ["--model.dim", "16"], Rows(tmp_path, {}))
    assert list(compared) == [*comparisons.PRESETS, "config:hope", "config:tnt", "config:atlas"]
    atlas = compared["config:atlas"]
    assert (atlas.model.memory.rule, atlas.model.dim, atlas.train.steps) == ("atlas", 16, 7)


def test_optimizers_are_tuned_on_seed_0_and_reported_on_others(tmp_path, monkeypatch):
    losses = {(1e-3, 0): 3.0, (1e-2, 0): 2.0, (1e-1, 0): math.nan, (1e-2, 1): 2.5, (1e-2, 2): 2.1}
    seen = []

    def trained(experiment, bar):
        at = experiment.optim.peak_rate, experiment.train.seed
        seen.append((experiment.optim.name, *at))
        loss = losses[at] + (experiment.optim.name == "m3")
        return finished([6.0, 1.0], model=loss)

    monkeypatch.setattr(comparisons, "fit", trained)
    monkeypatch.setattr(comparisons, "held_out", lambda experiment, model: Knows(model))
    costs = {"muon": 2.0, "adamw": 2.5, "m3": 3.0}
    monkeypatch.setattr(comparisons, "step_timer", lambda experiment, times: timed(costs[experiment.optim.name]))
    monkeypatch.setattr(comparisons, "_update_timer", lambda experiment, times: timed(1.0))

    def compare(names, rates, seeds, folder=tmp_path):
        return comparisons.optimizers(small(), names, rates, seeds, Rows(folder, {}))

    report = compare(["adamw", "m3"], [1e-3, 1e-2, 1e-1], 2)
    assert len(seen) == 10 and seen[:5] == [("adamw", *at) for at in losses]
    found = report.rows
    assert found["adamw"]["rate"] == 1e-2
    assert found["m3"]["loss"] == pytest.approx(3.3) and found["m3"]["loss_spread"] == pytest.approx(0.4 / 2**0.5)
    assert "| adamw | 0.01 | no | 2.3000 +- 0.2828 | 1.25 | 1.00 |" in report.table()
    assert compare(["adamw", "m3"], [1e-3, 1e-2, 1e-1], 2).table() == report.table() and len(seen) == 10
    edge = compare(["m3"], [1e-2, 1e-1], 1)
    assert "| m3 | 0.01 | yes | 3.5000 | 1.50 |" in edge.table() and len(seen) == 10
    losses[1e-2, 3] = math.nan
    assert "| not finite |" in compare(["m3"], [1e-3, 1e-2], 3).table()


class Knows:
    """Stands for scores; the model is its loss."""

    def __init__(self, loss):
        self.loss = loss

    def summary(self):
        return {"loss": self.loss}


def timed(cost):
    return lambda: {"cpu": cost, "wall": cost}


@pytest.mark.slow
def test_optimizers_command_trains_and_times(tmp_path):
    arguments = ["bench", "optimizers", "--optimizers", "muon", "--rates", "1e-2", "--seeds", "1", "--steps", "4"]
    assert cli.main([*arguments, "--output-dir", str(tmp_path), *PLAIN]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert 3 < result["muon loss"] < 7 and result["muon rate"] == 0.01
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    steps = [f"round {n}: {what} of muon" for n in range(1, 6) for what in ("step", "update")]
    assert list(rows) == ["muon rate 0.01 seed 1", *steps]  # one rate: nothing to choose
    assert result["muon step_cost"] == result["muon update_cost"] == 1  # against itself
    assert 0 < rows["round 1: update of muon"]["wall"] < rows["round 1: step of muon"]["wall"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rules", "--rules", "titan"], "no rule named 'titan'; known are titans"),
        (["rules", "--rules", "config:hop"], "no config named 'hop'"),
        (["rules", "--config", "tinny"], "no config named 'tinny'; did you mean tiny?"),
        (["rules", "--model.dpeth", "3"], "no option --model.dpeth; did you mean --model.depth?"),
        (
            ["optimizers", "--optimizers", "adamv"],
            "optim.name: 'adamv' is unknown; known are " + ", ".join(OPTIMIZERS) + "; did you mean adamw?",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(arguments, message, tmp_path, capsys):
    assert cli.main(["bench", *arguments, "--output-dir", str(tmp_path / "rows")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_other_commands_take_no_options_of_an_experiment(capsys):
    assert cli.main(["eval", "--checkpoint", "nowhere", "--model.dim", "3"]) == 2
    assert "unrecognized arguments: --model.dim 3" in capsys.readouterr().err
