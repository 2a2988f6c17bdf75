"""`titans-jax haystack`: a grid of several checkpoints, kept lengths, errors."""

import json

import jax
import pytest

from titans_jax import cli, config, training

SMALL = [
    *("--model.block", "transformer", "--model.dim", "16", "--model.depth", "1", "--model.heads", "1"),
    *("--model.head-dim", "8", "--model.attention", "full", "--model.context", "200", "--data.sequence", "200"),
    *("--data.batch", "2", "--train.steps", "1", "--train.eval-batches", "1", "--train.sample", "1"),
]


@pytest.fixture(scope="module")
def untrained():
    experiment = config.override(config.load("passkey"), SMALL)
    definition = training.define(experiment.model)
    return experiment, definition.model(jax.jit(definition.init)(jax.random.key(0)))


@pytest.fixture
def trained(untrained, tmp_path, monkeypatch):
    """A run's folder with an untrained model."""
    experiment, model = untrained
    monkeypatch.setattr(training, "load", lambda path, which, rule: (experiment, model, 1))
    return tmp_path / "full"


@pytest.mark.slow
def test_a_model_of_a_task_is_tested_on_it(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["train", "passkey", *SMALL, "--data.task", "niah_single", "--output-dir", str(folder)]) == 0
    command = ["haystack", "--checkpoint", str(folder), "--lengths", "180", "--samples", "1", "--depths", "0.5"]
    assert cli.main([*command, "--output-dir", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["run_exact_180"] == 0  # one step teaches nothing


def test_a_grid_is_tested_and_drawn_and_finished_lengths_are_kept(trained, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    grid = ["--lengths", "180,192,400", "--depths", "0,1", "--samples", "2", "--output-dir", str(out)]
    tested = []

    def cells(model, hay, needle, *, length, depths, samples, seed, on_tokens):
        tested.append(length)
        if tested == [180, 192]:
            raise KeyboardInterrupt
        on_tokens(length * samples * len(depths))
        cell = {"accuracy": 0.5, "log_likelihood": -1.0, "samples": samples}
        return [{"depth": depth, "exact": depth, **cell} for depth in depths]

    command = ["haystack", "--checkpoint", str(trained), *grid]
    with monkeypatch.context() as patched:
        patched.setattr("titans_jax.cli.haystack.find_needles", cells)
        assert cli.main(command) == 75
        assert "keeps the finished results; run the same command again to continue" in capsys.readouterr().err
        assert cli.main(command) == 0
    assert tested == [180, 192, 192]
    printed = capsys.readouterr().out
    assert "full: not tested: 404 tokens do not fit into the model.context of 200 tokens" in printed
    assert "| full | 50% | 50% | does not fit |" in printed and (out / "heatmap.png").is_file()
    result = json.loads((out / "result.json").read_text())
    assert result["full_exact_192"] == 0.5 and result["full_exact_400"] is None
    assert json.loads((out / "heatmap.json").read_text())["full"]["exact"] == [[0.0, 0.0, None], [1.0, 1.0, None]]
    assert cli.main([*command, "--samples", "3"]) == 2
    assert "holds rows with samples = 2, not 3; give another --output-dir" in capsys.readouterr().err


def test_own_texts_and_a_larger_context(trained, tmp_path):
    text = tmp_path / "texts" / "one.txt"
    text.parent.mkdir()
    text.write_text("A whale is a whale. " * 9)
    command = ["haystack", "--checkpoint", str(trained), "--haystack-dir", str(text.parent), "--needle", "{key}."]
    command += ["--question", "Key?", "--answer", " {key}", "--lengths", "200", "--depths", "0.5", "--samples", "1"]
    assert cli.main([*command, "--context", "256", "--output-dir", str(tmp_path / "out")]) == 0
    [(key, row)] = json.loads((tmp_path / "out/rows.json").read_text())["rows"].items()
    assert key == "full, step 1, 200 tokens" and row["cells"][0]["log_likelihood"] < -5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "60"], "a length of 60 tokens has no room for needle and question; give at least 98"),
        (["--lengths", "4096"], "full: 4100 tokens do not fit into the model.context of 200 tokens; --context gives"),
        (["--answer", ""], "the answer is empty"),
        (["--haystack-dir", "moby-dik"], "did you mean moby-dick?"),
    ],
)
def test_invalid_options_are_refused_in_a_line(trained, arguments, message, tmp_path, capsys):
    assert cli.main(["haystack", "--checkpoint", str(trained), *arguments, "--output-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
