"""`titans-jax compare`: the same batches for all, rates chosen on a seed that does not count, and files that say so."""

import json
import math
import os
import signal
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax import cli, config
from titans_jax.bench import fit as fits
from titans_jax.bench import models
from titans_jax.bench.fit import Fit
from titans_jax.evaluation import Scores
from titans_jax.nn import LayerInfo

SMALL = [
    *("--model.dim", "16", "--model.depth", "1", "--model.heads", "1", "--model.head-dim", "8"),
    *("--model.window", "16", "--data.sequence", "32", "--data.batch", "4", "--model.memory.chunk", "8"),
    *("--model.memory.heads", "2", "--model.memory.head-dim", "4", "--model.memory.conv", "0"),
    *("--train.eval-batches", "2", "--train.prompt", "Call", "--train.sample", "8", "--model.segment", "8"),
]
COSTS = {
    "parameters": 170000,
    "state_bytes": 300,
    "flops_per_token": 2.5e6,
    "step_bytes": 44_000_000,
    "contexts": [256, 1024],
    "states": [300, 1200],
    "train_tokens_per_second": 9000.4,
    "decode_tokens_per_second": [600.0, 150.0],
}


@pytest.fixture
def trained(monkeypatch):
    """Trainings that are only noted; a model's loss is its rate, and 1 more for every seed beyond the first."""
    seen = []

    def fit(experiment, bar, look):
        at = experiment.name, experiment.optim.peak_rate, experiment.train.seed
        seen.append(at)
        if at in diverging:
            return Fit([5.0, math.nan], [1.0, 1.0], 128, None, None)
        for step in range(1, experiment.train.steps + 1):
            memory = LayerInfo(*(jnp.full(2, value) for value in range(8))) if experiment.name == "lmm" else None
            look(step, None, {"memory": memory})
        return Fit([5.0, 4.0], [1.0, 0.5], 128, None, None)

    def held_out(experiment, model):
        loss = experiment.optim.peak_rate + max(0, experiment.train.seed - 1)
        sums = (np.full((1, 2), total) for total in (2 * loss, 0.5, 2.0))  # of 4 tokens and bytes, 1 of them right
        return Scores(*sums, bytes=4, reset="")

    class Program:
        class definition:
            model = staticmethod(lambda params: params)

    diverging: set = set()
    monkeypatch.setattr(models, "fit", fit)
    monkeypatch.setattr(models, "held_out", held_out)
    monkeypatch.setattr(models, "program", lambda experiment: Program)
    monkeypatch.setattr(models, "sample", lambda experiment, *_: f"{experiment.name} of {experiment.train.seed}")
    monkeypatch.setattr(models, "costs", lambda experiments, rows: dict.fromkeys(experiments, COSTS))
    for module in (fits, models):
        monkeypatch.setattr(module, "forget", lambda: seen.append("forgotten"))
    return seen, diverging


def run(folder, *arguments, code=0):
    assert cli.main(["compare", *arguments, "--match", "none", "--output-dir", str(folder)]) == code


def test_models_share_all_but_the_model():
    base = config.override(config.load("tiny"), SMALL)
    found = models.experiments_of(base, [*models.MODELS, "atlas"], SMALL)
    assert list(found) == ["lmm", "mac", "mag", "mal", "transformer", "sliding", "atlas"]
    for name, experiment in found.items():
        assert replace(experiment, model=base.model, name=base.name) == base, name
    assert found["mag"].model == replace(base.model, block="mag")
    assert (found["atlas"].model.memory.rule, found["atlas"].model.dim) == ("atlas", 16)  # its own memory, our size
    full = replace(base.model, block="transformer", attention="full", context=32)  # the sequence
    assert found["transformer"].model == full and found["sliding"].model.attention == "sliding"
    longer = replace(base, train=replace(base.train, sample=100))
    assert models.experiments_of(longer, ["transformer"], [])["transformer"].model.context == len("Call") + 100


def test_the_flags_of_the_systems_that_are_reproduced_have_their_place(tmp_path, trained):
    """S1.40 to S1.42 and S3.20, by the names that README's table gives them."""
    seen, _ = trained
    model = "--model.dim 512 --model.depth 6 --model.heads 8 --model.head-dim 64 --model.segment 512 --model.ff-mult 4"
    memory = "--model.memory.head-dim 16 --model.window 64 --data.sequence 128 --data.corpus moby-dick"
    train = "--optim.peak-rate 5e-5 --optim.warmup 1000 --optim.clip 0.5 --train.label-smoothing 0.1 --data.batch 16"
    often = "--train.eval-every 500 --train.log-every 100 --train.save-every 1000 --train.eval-batches 4"
    run(tmp_path, "mac", "transformer", "--seeds", "1", "--steps", "10", *f"{model} {memory} {train} {often}".split())
    held = json.loads((tmp_path / "rows.json").read_text())["settings"]
    assert (held["models"]["mac"]["segment"], held["models"]["transformer"]["ff_mult"]) == (512, 4)
    assert held["experiment"]["optim"]["clip"] == 0.5 and held["experiment"]["train"]["steps"] == 10
    assert [at[:2] for at in seen if at != "forgotten"] == [("mac", 5e-5), ("transformer", 5e-5)]


def test_rates_are_chosen_on_seed_0_and_results_are_of_others(tmp_path, trained, capsys):
    seen, _ = trained
    run(tmp_path, "lmm", "sliding", "--steps", "20", "--rates", "2,1,3", "--seeds", "2")
    order = [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2)]
    first, second = ([(name, *at) for at in order] for name in ("lmm", "sliding"))
    # before each model, after the last, and after the costs
    assert seen == ["forgotten", *first, "forgotten", *second, "forgotten", "forgotten"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["lmm_loss"], result["lmm_loss_spread"]) == (1.5, pytest.approx(0.5**0.5))
    assert result["sliding_rate"] == 1 and result["sliding_accuracy"] == 0.25
    assert (result["lmm_state_bytes_1024"], result["lmm_decode_tokens_per_second_1024"]) == (1200, 150)
    table = (tmp_path / "table.md").read_text()
    assert "| lmm | 1 | yes | 1.5000 +- 0.7071 | 5.054 +- 3.303 | 2.1640 +- 1.0201 | 0.2500 +- 0.0000 |" in table
    assert "| 9,000 | 2,500,000 | 300 | 44,000,000 | 170,000 | - |" in table and "| sliding | 600 | 150 |" in table
    assert "20 steps of 8 x 256 tokens (40,960 in all)" in table and "rates 1, 2, 3 tried on seed 0" in table
    memories = table.partition("Memories")[2]
    assert "| lmm | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |" in memories and "sliding" not in memories
    assert table in capsys.readouterr().out
    assert (tmp_path / "samples.txt").read_text() == "== lmm\n\nlmm of 1\n\n== sliding\n\nsliding of 1\n"
    for name in ("curves", "costs", "contexts", "places"):
        assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["lmm"]["step"] == list(range(2, 21, 2)) and curves["lmm"]["loss"] == [[1.0] * 10, [2.0] * 10]

    run(tmp_path, "lmm", "sliding", "--steps", "20", "--seeds", "3", "--rates", "1,2,3")
    assert [at[0::2] for at in seen if at != "forgotten"][10:] == [("lmm", 3), ("sliding", 3)]  # what is there is kept


def test_a_seed_that_diverges_is_not_averaged_away(tmp_path, trained):
    _, diverging = trained
    diverging.add(("mac", 0.01, 2))
    run(tmp_path, "mac", "lmm", "--steps", "2", "--seeds", "3")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["mac_loss"] is None and result["lmm_loss"] == pytest.approx(1.01)
    table = (tmp_path / "table.md").read_text()
    assert "| mac | 0.01 | not finite | not finite |" in table


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_75_and_the_same_command_goes_on(number, tmp_path, trained, monkeypatch, capsys):
    seen, _ = trained
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `nohup ... &` leaves it
    train = models.fit

    def interrupted(experiment, bar, look):
        if len(seen) == 2:  # forgotten, and one that was trained
            os.kill(os.getpid(), number)
        return train(experiment, bar, look)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(models, "fit", interrupted)
            run(tmp_path, "lmm", "--steps", "2", code=75)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN and len(seen) == 2  # as it was
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert "run the same command again to continue" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
    run(tmp_path, "lmm", "--steps", "2")
    assert [at[2] for at in seen if at != "forgotten"] == [1, 2, 3]


def test_rows_of_other_models_are_refused(tmp_path, trained, capsys):
    run(tmp_path, "lmm", "--steps", "2")
    run(tmp_path, "lmm", "--steps", "2", "--model.dim", "64", code=2)
    assert "holds rows with experiment.model.dim = 128, not 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["macc"], "no model named 'macc'; known are lmm, mac, mag, mal, transformer, sliding, and the names of conf"),
        (["mac", "--model.dpeth", "3"], "no option --model.dpeth; did you mean --model.depth?"),
        (["mac", "--config", "tinny"], "no config named 'tinny'; did you mean tiny?"),
        (["mac", "--train.steps=9"], "--train.steps: give --steps"),
        (["mac", "--model.segment", "32"], "model.segment: 32 is not a multiple of model.memory.chunk 64"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(arguments, message, tmp_path, capsys):
    assert cli.main(["compare", *arguments, "--output-dir", str(tmp_path / "rows")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_programs_are_let_go_of():
    experiment = config.override(config.load("tiny"), [*SMALL, "--model.block", "transformer"])
    fits.program(experiment)
    assert fits._program.cache_info().currsize
    fits.forget()
    assert not fits._program.cache_info().currsize


@pytest.mark.slow
def test_compare_trains_measures_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CONTEXTS", (256, 4096))
    names = ("transformer", "lmm")
    arguments = ["compare", *names, "--steps", "4", "--seeds", "2", "--output-dir", str(tmp_path)]
    assert cli.main([*arguments, *SMALL, "--model.memory.rule", "linear_attention"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    trainings = [name for name in rows if not name.startswith("round ")]
    assert trainings == [f"{name} rate 0.01 seed {seed}" for name in names for seed in (1, 2)]
    for name in names:
        one, two = (rows[f"{name} rate 0.01 seed {seed}"] for seed in (1, 2))
        assert one["curve"]["step"] == [1, 2, 3, 4] and one["loss"] == one["curve"]["loss"][-1] != two["loss"]
        assert np.mean(one["by_place"]) == pytest.approx(one["loss"], rel=1e-5)  # equal parts
        assert result[f"{name}_loss"] == pytest.approx((one["loss"] + two["loss"]) / 2)
        assert one["sample"].startswith("Call") and len(one["sample"]) > 4
        assert bool(one["memory"]) == (name == "lmm")
    lmm, full = (
        {field.removeprefix(f"{name}_"): value for field, value in result.items() if field.startswith(f"{name}_")}
        for name in ("lmm", "transformer")
    )
    assert abs(lmm["parameters"] - full["parameters"]) <= 3 * 8 * 16  # a hidden width of 8 more
    assert min(cost["step_bytes"] / cost["parameters"] for cost in (lmm, full)) > 3 * 4  # weight, momentum, gradient
    assert lmm["state_bytes_256"] == lmm["state_bytes_4096"] == lmm["state_bytes"]
    assert full["state_bytes_4096"] - full["state_bytes_256"] == 2 * 8 * 4 * (4096 - 256)
    assert lmm["decode_tokens_per_second_256"] == lmm["decode_tokens_per_second_4096"] > 0
    assert min(full[f"decode_tokens_per_second_{context}"] for context in (256, 4096)) > 0
    assert full["train_tokens_per_second"] > 0
