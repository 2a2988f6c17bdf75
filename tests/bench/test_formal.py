"""`titans-jax bench formal`: what is tested is what lies beyond, and a constant answer stands beside the models."""

import json
import re

import numpy as np
import pytest

from titans_jax import cli
from titans_jax.bench import comparisons
from titans_jax.bench.fit import Fit


class Knows:
    """Stands for a model whose labels are right up to a position, and all 0 after it."""

    def __init__(self, until):
        self.until = until

    def model(self, params):
        return self


@pytest.fixture
def fake(monkeypatch):
    trained = []

    def fit(experiment, bar):
        trained.append((experiment.model.block, experiment.data.task, experiment.train.seed, experiment.model.context))
        until = 8 if experiment.model.block == "transformer" else 16
        return Fit([1.0, 0.5], [1.0, 1.0], 1, Knows(until), {"w": np.zeros((2, 3))})

    def evaluate(model, batches, lengths):
        right = total = 0
        for batch in batches:
            said = np.where(np.arange(16) < model.until, batch["targets"], ord("0"))
            right += ((said == batch["targets"]) * batch["mask"]).sum()
            total += batch["mask"].sum()
        return {"accuracy": float(right / total)}

    monkeypatch.setattr(comparisons, "fit", fit)
    monkeypatch.setattr(comparisons, "evaluate", evaluate)
    return trained


COMMAND = ["bench", "formal", "--models", "hope,transformer", "--seeds", "2", "--steps", "2", "--data.sequence", "8"]


def test_models_are_tested_at_twice_the_length(fake, tmp_path, capsys):
    command = [*COMMAND, "--languages", "parity", "--output-dir", str(tmp_path)]
    assert cli.main(command) == 0
    assert fake == [(block, "parity", seed, 16) for block in ("hope", "transformer") for seed in (0, 1)]
    said = capsys.readouterr().out
    assert "| parity: hope | 0.003 | 100.0% +- 0.0% | 100.0% +- 0.0% | 100.0%, 100.0% | 6 |" in said
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["parity: transformer within"] == 1 and 0.45 < result["parity: transformer beyond"] < 0.55
    assert 0.5 <= result["parity: always the commonest label beyond"] < 0.56
    assert cli.main(command) == 0 and len(fake) == 4  # rows are kept


def test_what_is_no_model_or_no_language_is_refused(tmp_path, capsys):
    for arguments, message in (
        (["--models", "hop"], "no model named 'hop'; known are hope, hope-frozen, transformer, transformer-2"),
        (["--languages", "paritty"], "data.task: 'paritty' is unknown; known are .*; did you mean parity\\?"),
    ):
        assert cli.main(["bench", "formal", *arguments, "--output-dir", str(tmp_path)]) == 2
        assert re.search(message, capsys.readouterr().err)
