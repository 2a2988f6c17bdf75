"""`bench recall`: seeds that are trained in one program are trained as each alone would be."""

from dataclasses import replace

import numpy as np
import pytest

from titans_jax import config
from titans_jax.bench import recall
from titans_jax.bench.fit import fit
from titans_jax.bench.report import Rows
from titans_jax.metrics import Progress

BASE = config.override(
    config.load("recall"),
    [
        "--train.steps",
        "3",
        "--data.batch",
        "4",
        "--model.depth",
        "1",
        "--model.dim",
        "8",
        "--model.memory.head-dim",
        "8",
    ],
)


@pytest.mark.slow
def test_each_seed_is_the_training_of_that_seed_alone(tmp_path):
    report = recall.recall(BASE, ["lmm:deltanet"], 2, Rows(tmp_path, {}))
    row = Rows(tmp_path, {}).rows["lmm:deltanet, 2 seeds"]
    memory = replace(BASE.model.memory, rule="deltanet")
    model = replace(BASE.model, block="lmm", memory=memory)
    for seed, loss in enumerate(row["loss"]):
        experiment = replace(BASE, model=model, train=replace(BASE.train, seed=seed))
        with Progress(3, "training") as bar:
            assert np.isclose(np.mean(fit(experiment, bar).losses), loss, rtol=1e-5)
    assert row["loss"][0] != row["loss"][1]
    assert row["learned"] == [None, None]
    assert report.rows["lmm:deltanet"]["learned"] == "0 of 2"


def test_a_seed_has_learned_where_the_mean_of_ten_steps_is_low(tmp_path, monkeypatch):
    monkeypatch.setattr(recall, "LEARNED", 100.0)
    monkeypatch.setattr(recall, "MEAN_OF", 2)
    report = recall.recall(BASE, ["transformer"], 2, Rows(tmp_path, {}))
    assert report.rows["transformer"]["learned"] == "2 of 2" and report.rows["transformer"]["each"] == "2, 2"


def test_a_model_that_cannot_be_trained_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"model\.block: 'mca' is unknown"):
        recall.recall(BASE, ["mac:titans", "mca:titans"], 1, Rows(tmp_path, {}))
    assert not Rows(tmp_path, {}).rows
