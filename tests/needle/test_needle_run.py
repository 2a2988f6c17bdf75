"""From a command to a folder of results; a run that was stopped ends as one that was not."""

import contextlib
import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from titans_jax import cli, data, files, needle, training
from titans_jax.checkpoint import CheckpointError, Checkpoints
from titans_jax.needle import pipeline, samples, trainer

SMALL = {
    "memory": False,
    "dim": 32,
    "heads": 2,
    "layers": 1,
    "memory_dim": 16,
    "memory_heads": 1,
    "segment_size": 16,
    "n_persistent": 2,
    "lengths": (16,),
    "samples": (128, 20, 30),
    "batch": 16,
    "epochs": 3,
    "learning_rate": 0.01,
}
OPTIONS = ["--no-memory"]
OPTIONS += [
    word
    for name, value in SMALL.items()
    if name != "memory"
    for word in (f"--{name}", *map(str, value if isinstance(value, tuple) else (value,)))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("needle") / "run"
    assert cli.main(["needle", "run", *OPTIONS, "--output-dir", str(folder)]) == 0
    return folder


def test_an_epoch_reads_every_sample_once_without_padding():
    found, *_ = data.needle_splits(0, (64, 1, 1), (4, 8))
    batches = samples.epoch(found, 5, seed=3, number=1)
    rows = np.concatenate([batch.rows for batch in batches])
    assert len(set(rows)) == len(rows) > 64 - 2 * 5
    assert all((batch.tokens > 0).all() and batch.tokens.shape == (5, found.length[batch.rows[0]]) for batch in batches)
    again, other = (samples.epoch(found, 5, seed=3, number=n) for n in (1, 2))
    assert all((a.rows == b.rows).all() for a, b in zip(batches, again, strict=True))
    assert any((a.rows != b.rows).any() for a, b in zip(batches, other, strict=True))
    assert sorted({row for batch in samples.in_order(found, 7) for row in batch.rows}) == list(range(64))


@pytest.mark.parametrize(("samples", "where"), [(32, "step 2: the loss"), (16, "step 1: the held-out loss")])
def test_a_run_that_diverges_ends_with_4_and_says_where(tmp_path, capsys, samples, where):
    options = ["--samples", str(samples), "20", "30", "--learning_rate", "1e38", "--output-dir", str(tmp_path)]
    assert cli.main(["needle", "train", *OPTIONS, *options]) == 4
    error = capsys.readouterr().err
    assert f"diverged at {where} is " in error and "a lower --learning-rate may help, with --no-resume" in error


def test_a_checkpoint_of_an_older_version_goes_on_and_one_of_a_newer_is_refused(folder, monkeypatch):
    meta = Checkpoints(folder / "checkpoints").meta()
    monkeypatch.setattr(Checkpoints, "meta", lambda self, which="last": meta)
    del meta["config"]["l2"]
    config, _, step = needle.load(folder)
    needle.train(config, folder)
    assert config.l2 and needle.load(folder)[2] == step
    meta["config"]["new"] = 1
    for use in (lambda: needle.load(folder), lambda: needle.train(config, folder)):
        with pytest.raises(CheckpointError, match=r"holds no Titan-Min: ValueError: needle.new is not a field"):
            use()


def test_a_second_run_in_a_folder_is_refused(folder):
    config, _, step = needle.load(folder)
    with files.locked(folder), pytest.raises(ValueError, match=f"{folder} is in use by process"):
        needle.train(config, folder, resume=False)
    assert needle.load(folder)[2] == step


def test_run_trains_and_leaves_everything(folder, capsys):
    result, report = (json.loads((folder / f"{name}.json").read_text()) for name in ("result", "report"))
    assert result["accuracy_16"] == report["acc_by_L"]["16"] == 1.0
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = data.needle_splits(42, (128, 20, 30), (16,))[2]
    assert [int(row["position"]) for row in rows] == truth.position.tolist()
    assert [row["predicted"] for row in rows] == [row["position"] for row in rows]
    for name in ("config.json", "metrics.json", "export/run.py", "plots/answers.png", "plots/loss_curve.png"):
        assert (folder / name).is_file()
    capsys.readouterr()
    hay = [5] * 16
    hay[11] = 127
    script = str(folder / "export" / "length_16.stablehlo")
    for source in (["--checkpoint", str(folder)], ["--script", script]):
        assert cli.main(["needle", "infer", *source, "--seq", " ".join(map(str, hay))]) == 0
        assert capsys.readouterr().out.startswith("16 tokens: at 11 (probability ")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(folder, tmp_path, monkeypatch):
    config = needle.NeedleConfig(**SMALL)

    class After:
        """Asked so often, it says stop."""

        count = 5

        def is_set(self):
            self.count -= 1
            return self.count <= 0

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_requested", lambda: contextlib.nullcontext(After()))
        with pytest.raises(training.Stopped, match="after step 5 of 24"):
            needle.train(config, tmp_path)
    with pytest.raises(ValueError, match="holds a run with seed = 0, not 1"):
        needle.train(dataclasses.replace(config, seed=1), tmp_path)
    needle.train(config, tmp_path)
    weights = [nnx.to_pure_dict(nnx.split(needle.load(where, "last")[1])[1]) for where in (folder, tmp_path)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    assert (tmp_path / "metrics.json").read_text() == (folder / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--epochz", "3"], 2, "no option --epochz; did you mean --epochs?"),
        (["run", "--dim", "20"], 2, "dim: 20 is not a multiple of heads 8"),
        (["eval", "--checkpoint", "nowhere"], 3, "nowhere is no folder of checkpoints"),
        (["infer", "--seq", "1 2"], 2, "give either --checkpoint, a run's folder, or --script, an exported program"),
        (["infer", "--script", "x", "--seq", "1 128"], 2, "each from 1 to 127"),
        (["infer", "--script", "x", "--seq", "one"], 2, "tokens are integers separated by spaces or commas"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, code, message, capsys):
    assert cli.main(["needle", *arguments]) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.slow
def test_titan_min_finds_needles(tmp_path):
    result = needle.run(needle.NeedleConfig(**SMALL | {"memory": True, "segment_size": 8}), tmp_path)
    assert result["accuracy_16"] == 1.0
    assert json.loads((tmp_path / "plots/memory.json").read_text())["rate"]


@pytest.mark.slow
def test_ablations_are_tabulated_beside_the_whole(tmp_path, monkeypatch):
    tiny = {**SMALL, "samples": (64, 8, 16), "epochs": 1}
    monkeypatch.setattr(pipeline, "SMALL", tiny)
    monkeypatch.setattr(pipeline, "ABLATIONS", {"whole": {}, "relu": {"activation": "relu"}})
    table = needle.ablate(needle.NeedleConfig(), tmp_path).splitlines()
    rows = json.loads((tmp_path / "ablations.json").read_text())
    assert table[0] == "| variant | parameters | found, 16 tokens |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| whole", "| relu"]
    for line, row in zip(table[2:], rows.values(), strict=True):
        assert line.endswith(f"{100 * row['accuracy_16']:.1f}% |")
    assert json.loads((tmp_path / "relu/config.json").read_text())["activation"] == "relu"
    assert json.loads((tmp_path / "ablations_chart.json").read_text())["whole"]["16"] == rows["whole"]["accuracy_16"]
