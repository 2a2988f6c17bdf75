"""Training: what a run leaves behind, and that kills, signals and resets change none of its numbers."""

import json
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from titans_jax import cli, config, data, files, metrics, training
from titans_jax.checkpoint import CheckpointError, Checkpoints
from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.decode import NotFinite
from titans_jax.evaluation import evaluate
from titans_jax.metrics import read_records
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig
from titans_jax.training.counts import CHIPS, Chip, flops_per_token
from titans_jax.training.errors import Diverged, stop_requested
from titans_jax.training.placement import Placement
from titans_jax.training.step import init_state, optimizer_of

OPTIONS = {
    "--model.block": "transformer",
    "--model.vocab-size": 256,
    "--model.dim": 16,
    "--model.depth": 1,
    "--model.heads": 1,
    "--model.head-dim": 8,
    "--model.window": 16,
    "--data.corpus": "moby-dick",
    "--data.sequence": 32,
    "--data.batch": 4,
    "--train.steps": 12,
    "--train.log-every": 1,
    "--train.save-every": 3,
    "--train.eval-every": 6,
    "--train.eval-batches": 2,
    "--train.sample": 4,
}
KILLED = """
import os, sys
from titans_jax import metrics, training
step, number = int(sys.argv[1]), int(sys.argv[2])
write = metrics.Log.write
def write_and_kill(log, n, split, values):
    write(log, n, split, values)
    if n == step and split == "train":
        os.kill(os.getpid(), number)
metrics.Log.write = write_and_kill
sys.exit(training.command(sys.argv[3:], prog="train.py"))
"""
ROOT = Path(__file__).resolve().parents[2]


def experiment(folder: Path, **train) -> Experiment:
    return Experiment(
        name="small",
        model=ModelConfig(block="transformer", vocab_size=256, dim=16, depth=1, heads=1, head_dim=8, window=16),
        data=DataConfig(sequence=32, batch=4),
        optim=OptimConfig(peak_rate=1e-2, warmup=2),
        train=TrainConfig(**{"steps": 12, "log_every": 1, "eval_every": 6, "eval_batches": 2, "sample": 4, **train}),
        output_dir=str(folder),
    )


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [(r["step"], r["split"], r["loss"]) for r in read_records(folder) if "loss" in r]


@pytest.mark.slow
def test_a_run_killed_twice_logs_the_losses_of_one_that_was_not(run_python, tmp_path):
    options = OPTIONS | {"--model.block": "lmm", "--model.memory.heads": 1, "--model.memory.chunk": 8}
    arguments = ["tiny", *(str(part) for pair in options.items() for part in pair), "--output-dir"]
    run_python(ROOT / "train.py", *arguments, "whole")
    first, second = random.randint(1, 5), random.randint(7, 11)
    stopped = run_python("-c", KILLED, first, int(signal.SIGTERM), *arguments, "broken", code=75)
    assert f"stopped after step {first + 1}, which is saved" in stopped.stderr
    run_python("-c", KILLED, second, int(signal.SIGKILL), *arguments, "broken", code=-signal.SIGKILL)
    run_python(ROOT / "train.py", *arguments, "broken")
    whole, broken = losses(tmp_path / "whole"), losses(tmp_path / "broken")
    assert len(whole) == 12 + 2
    assert broken == whole, f"killed at {first} and {second}"  # bit for bit
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "broken")]
    assert results[0]["bits_per_byte"] == results[1]["bits_per_byte"]
    assert (tmp_path / "whole/sample.txt").read_text() == (tmp_path / "broken/sample.txt").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, training.run(experiment(folder, steps=60, eval_every=30, save_every=50))


def test_a_run_learns_and_says_where_everything_is(finished, capsys):
    folder, result = finished
    assert result == json.loads((folder / "result.json").read_text())
    assert {"bits_per_byte", "loss", "perplexity", "accuracy", "tokens_per_second", "steps", "parameters"} <= set(
        result
    )
    held_out = [loss for _, split, loss in losses(folder) if split == "held_out"]
    assert held_out[-1] == result["loss"] < np.log(256) - 1  # a model that has learned nothing is at log 256
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / np.log(2))  # a byte a token
    assert result["steps"] == result["best_step"] == 60
    assert 0 < result["step_p50_seconds"] <= result["step_p95_seconds"]
    parts = sum(result[f"{what}_seconds"] for what in ("step", "compile", "data", "evaluate", "save"))
    assert result["goodput"] == pytest.approx(result["step_seconds"] / parts) and 0 < result["goodput"] < 1
    assert "mfu" not in result  # nobody says what a CPU can do
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "memory.png").exists()  # a transformer has none
    assert (folder / "sample.txt").read_text().startswith("The ")


def test_a_finished_run_is_not_trained_again(finished):
    folder, result = finished
    before = losses(folder)
    again = training.run(experiment(folder, steps=60, eval_every=30, save_every=50))
    assert again == result
    assert losses(folder) == before


def test_a_finished_run_whose_sample_is_not_finite_has_its_result(finished, monkeypatch, caplog):
    folder, result = finished

    def lost(*args, **kwargs):
        raise NotFinite([0], np.array([[65, 66, -1, -1]]))

    monkeypatch.setattr("titans_jax.training.report.generate", lost)
    again = training.run(experiment(folder, steps=60, eval_every=30, save_every=50))
    assert again == result
    assert (folder / "sample.txt").read_text() == "The AB"
    assert "the sample ends early: rows 0: the model's logits are not finite" in caplog.text


def test_another_configuration_does_not_go_on_with_a_run(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match=r"holds a run with optim.peak_rate = 0.01, not 0.02.*--no-resume"):
        other = experiment(folder, steps=60)
        training.run(replace(other, optim=replace(other.optim, peak_rate=2e-2)))
    with pytest.raises(ValueError, match="holds a run of 60 steps; train.steps is 30"):
        training.run(experiment(folder, steps=30))


def test_another_text_under_the_same_name_does_not_go_on_with_a_run(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr("titans_jax.data.text.load_documents", lambda *spec: ["another text\n" * 100])
    with pytest.raises(ValueError, match=r"holds a run with held-out text = .{16}, not .{16}; give another"):
        training.run(experiment(folder, steps=60))


def test_a_checkpoint_of_an_older_version_loads_and_goes_on(finished, monkeypatch):
    folder, result = finished
    meta = Checkpoints(folder / "checkpoints").meta()
    del meta["experiment"]["model"]["weight_residual"], meta["experiment"]["train"]["z_loss"], meta["content"]
    monkeypatch.setattr(Checkpoints, "meta", lambda self, which="last": meta)
    assert training.load(folder)[0].model.weight_residual is False
    assert training.run(experiment(folder, steps=60, eval_every=30, save_every=50))["loss"] == result["loss"]


def test_a_checkpoint_of_a_newer_version_is_refused_with_the_version(finished, monkeypatch):
    folder, _ = finished
    meta = Checkpoints(folder / "checkpoints").meta()
    meta["experiment"]["model"]["new"], meta["version"] = 3, "9.9"
    monkeypatch.setattr(Checkpoints, "meta", lambda self, which="last": meta)
    for use in (lambda: training.load(folder), lambda: training.run(experiment(folder, steps=60))):
        with pytest.raises(
            CheckpointError, match=r"model.new is not a field of .* written by titans-jax 9.9, and this"
        ):
            use()


def test_a_checkpoint_is_the_model_that_was_evaluated(finished):
    folder, result = finished
    saved, model, step = training.load(folder)
    assert step == 60 and saved == config.from_json(
        config.to_json(experiment(folder, steps=60, eval_every=30, save_every=50))
    )
    batches = data.held_out_batches(saved.data, limit=2)
    assert evaluate(model, batches, data.BYTES.byte_lengths)["loss"] == pytest.approx(result["loss"], rel=1e-6)


@pytest.mark.parametrize(("steps", "where"), [(12, "at step 2: loss"), (1, "at step 1: held-out loss")])
def test_a_run_that_diverges_ends_with_4_and_says_where(tmp_path, capsys, steps, where):
    options = OPTIONS | {
        "--train.steps": steps,
        "--optim.peak-rate": "1e38",
        "--optim.clip": "None",
        "--optim.name": "sgd",
        "--optim.warmup": 0,
    }
    arguments = ["tiny", *(str(part) for pair in options.items() for part in pair)]
    code = training.command([*arguments, "--output-dir", str(tmp_path)], prog="train.py")
    error = capsys.readouterr().err
    assert code == 4
    assert f"train.py: diverged {where}" in error and "not finite" in error and "--optim.peak-rate" in error
    assert not (tmp_path / "result.json").exists()


def batches_with_nan(monkeypatch, *poisoned: int) -> None:
    """Training batches of which those with these numbers, from 1, have NaN in their mask."""
    batches = data.train_batches

    def train_batches(*args, start: int = 0, **options):
        for n, batch in enumerate(batches(*args, start=start, **options), start + 1):
            yield batch | {"mask": batch["mask"] * np.nan} if n in poisoned else batch

    monkeypatch.setattr(data, "train_batches", train_batches)


def state_at(folder: Path, step: int) -> list[np.ndarray]:
    """The arrays of a step's checkpoint."""
    run = experiment(folder)
    model, place = training.define(run.model), Placement.of("")
    like = init_state(model, optimizer_of(run.model, run.optim, 12), place, 0)._asdict()
    arrays = Checkpoints(folder / "checkpoints").restore(like, which=step)[0]
    return [np.asarray(x) for x in jax.tree.leaves({name: arrays[name] for name in ("params", "optimizer")})]


def test_a_skipped_update_leaves_every_bit_as_it_was(tmp_path, monkeypatch, caplog):
    batches_with_nan(monkeypatch, 4)
    training.run(experiment(tmp_path, steps=6, save_every=1, keep=9, not_finite="skip"))
    third, fourth, fifth = (state_at(tmp_path, step) for step in (3, 4, 5))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(third, fourth, strict=True))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(fourth, fifth, strict=True))
    assert "step 4: loss and grad_norm not finite; its update is skipped" in caplog.text
    assert [np.isnan(loss) for _, split, loss in losses(tmp_path) if split == "train"] == [False] * 3 + [True] + [
        False
    ] * 2


def test_a_rollback_passes_over_the_batches_since_the_last_checkpoint(tmp_path, monkeypatch, caplog):
    """Checkpoints are at 3 and 6: the bad batch 5 takes batch 4 with it, and the bad last one nothing else."""
    constant = OptimConfig(peak_rate=1e-2, warmup=2, schedule="constant")

    def run(name: str, **train) -> list[float]:
        training.run(replace(experiment(tmp_path / name, save_every=3, **train), optim=constant))
        return [loss for _, split, loss in losses(tmp_path / name) if split == "train"]

    batches_with_nan(monkeypatch, 5, 7)
    rolled = run("rolled", steps=7, not_finite="rollback")
    assert "step 5: loss and grad_norm not finite; back to step 3, and steps 4 to 5 are passed over" in caplog.text
    assert training.load(tmp_path / "rolled", "last")[2] == 7
    monkeypatch.undo()
    batches = data.train_batches

    def without(*args, **options):
        return (batch for n, batch in enumerate(batches(*args, **options), 1) if n not in (4, 5))

    monkeypatch.setattr(data, "train_batches", without)
    assert rolled[:3] + rolled[5:6] == run("reference", steps=4)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_stops_all_the_same_where_it_goes_on_in_vain(tmp_path, monkeypatch, policy):
    batches_with_nan(monkeypatch, *range(4, 99))
    with pytest.raises(Diverged, match="diverged at step 5: .*the last checkpoint is step 3"):
        training.run(experiment(tmp_path, save_every=3, not_finite=policy, patience=2))


@pytest.mark.parametrize("block", ["transformer", pytest.param("lmm", marks=pytest.mark.slow)])
def test_a_replay_takes_a_step_again_and_says_where_it_is_not_finite(tmp_path, capsys, block):
    given = experiment(tmp_path, save_every=1)
    memory = MemoryConfig(rule="deltanet", heads=1, head_dim=8, chunk=8)
    optim = OptimConfig(name="sgd", peak_rate=1e38, clip=None, warmup=0)
    with pytest.raises(Diverged, match="at step 2"):
        training.run(replace(given, optim=optim, model=replace(given.model, block=block, memory=memory)))
    logged = losses(tmp_path)[0][2]
    capsys.readouterr()
    assert cli.main(["replay", str(tmp_path), "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{logged:.4f}" in printed and "not finite" not in printed
    assert cli.main(["replay", str(tmp_path), "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"from checkpoint +1\nloss +nan", printed) and "not finite in gradients" in printed
    first = "surprise in layer 0, row 0, head 0, token 0 (chunk 0 of rule deltanet)"
    assert (first in printed) == (block == "lmm")
    assert cli.main(["replay", str(tmp_path), "13"]) == 2
    assert f"step 13: {tmp_path} holds a run of 12 steps" in capsys.readouterr().err


def test_a_run_that_diverged_goes_on_with_what_the_user_names(finished, tmp_path, capsys):
    folder, _ = finished
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    given = experiment(tmp_path, steps=61, eval_every=30, save_every=50)
    slower = replace(given, optim=replace(given.optim, peak_rate=1e-3))
    with pytest.raises(ValueError, match=r"not 0.001; give another --output-dir, --change optim.peak_rate to go on"):
        training.run(slower)
    training.run(slower, change=["optim.peak_rate"])
    assert Checkpoints(tmp_path / "checkpoints").meta("last")["experiment"]["optim"]["peak_rate"] == 1e-3
    assert training.command(["tiny", "--change", "optim.peek-rate"], prog="train.py") == 2
    assert "--change optim.peek_rate: it is not a field; did you mean optim.peak_rate?" in capsys.readouterr().err


def test_a_signal_is_noted_and_a_second_one_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop_requested() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_too_little_memory_is_met_with_advice(capsys):
    def run() -> None:
        with training.memory_advice():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    assert training.guard(run, prog="train.py") == 2
    said = capsys.readouterr().err
    for advice in ("--data.batch", "--optim.accumulation", "--data.sequence", "--model.remat", "bfloat16"):
        assert advice in said
    with pytest.raises(jax.errors.JaxRuntimeError), training.memory_advice():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_starting_over_forgets_the_earlier_run(tmp_path):
    training.run(experiment(tmp_path, steps=2))
    first = losses(tmp_path)
    training.run(experiment(tmp_path, steps=2, seed=1), resume=False)
    second = losses(tmp_path)
    assert [step for step, _, _ in second] == [1, 2, 2] and second[0] != first[0]


def test_a_second_run_in_a_folder_is_refused_and_touches_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with files.locked(folder), pytest.raises(ValueError, match=f"{folder} is in use by process"):
        training.run(experiment(folder, steps=60), resume=False)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_starting_over_where_checkpoints_is_a_link_keeps_what_it_points_to(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "checkpoints").symlink_to(folder / "checkpoints")
    training.run(experiment(tmp_path, steps=1), resume=False)
    assert training.load(tmp_path)[2] == 1 and training.load(folder)[2] == 60


@pytest.fixture(scope="module")
def memory_model():
    memory = MemoryConfig(heads=1, head_dim=8, expansion=2, chunk=8)
    settings = ModelConfig(block="lmm", vocab_size=256, dim=16, depth=1, persistent=0, memory=memory)
    definition = training.define(settings)
    return definition.model(jax.jit(definition.init)(jax.random.key(0)))


def test_evaluation_scores_each_token_before_the_memory_has_read_it(memory_model):
    """The loss of a batch is that of the logits before each target, whatever comes after it."""
    tokens = np.random.default_rng(0).integers(0, 255, (1, 33)).astype(np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": np.eye(1, 32, 15, dtype=np.float32),
        "reset": np.zeros((1, 32), bool),
    }
    scored = evaluate(memory_model, [batch], data.BYTES.byte_lengths)
    later = batch | {"inputs": np.where(np.arange(32) > 15, 7, batch["inputs"]).astype(np.int32)}
    assert evaluate(memory_model, [later], data.BYTES.byte_lengths) == scored
    assert scored["tokens"] == 1 and scored["reset"].startswith("the memory starts from its initial weights")


def test_a_stream_carries_the_memory_and_a_sequence_does_not(memory_model):
    tokens = np.random.default_rng(1).integers(0, 255, (2, 65)).astype(np.int32)

    def batch(begin: int, end: int) -> dict[str, np.ndarray]:
        inputs = tokens[:, begin:end]
        zeros = np.zeros(inputs.shape)
        targets = tokens[:, begin + 1 : end + 1]
        return {
            "inputs": inputs,
            "targets": targets,
            "mask": zeros.astype(np.float32) + 1,
            "reset": zeros.astype(bool),
        }

    halves = [batch(0, 32), batch(32, 64)]
    lengths = data.BYTES.byte_lengths
    whole = evaluate(memory_model, [batch(0, 64)], lengths)["loss"]
    assert evaluate(memory_model, halves, lengths, reset="stream")["loss"] == pytest.approx(whole, rel=1e-5)
    apart = [evaluate(memory_model, [half], lengths)["loss"] for half in halves]
    assert evaluate(memory_model, halves, lengths)["loss"] == pytest.approx(np.mean(apart), rel=1e-6)
    assert abs(np.mean(apart) - whole) > 1e-5
    with pytest.raises(ValueError, match="reset is 'never'"):
        evaluate(memory_model, halves, lengths, reset="never")


@pytest.mark.slow
def test_epochs_are_steps_and_evaluation_may_have_another_batch(tmp_path):
    text = tmp_path / "text"
    text.write_text("a line of text\n" * 100)
    given = experiment(tmp_path / "run", epochs=1.5, eval_batches=None, eval_batch=2)
    source = replace(given.data, corpus=str(text), held_out=0.2, cache_dir=str(tmp_path))
    result = training.run(replace(given, data=source))
    rows = -(-1200 // 32)  # the training side, in rows of 32
    assert data.steps_an_epoch(source) == -(-rows // 4) == 10
    assert result["steps"] == 15
    assert result["tokens"] == 300 + 1  # all held-out text and its end, whatever the batch
    with pytest.raises(ValueError, match=r"train.epochs is 0; it must be above 0"):
        training.run(experiment(tmp_path / "none", epochs=0))
    with pytest.raises(ValueError, match=r"train.eval_batch 0 does not divide.*set --train.eval-batch 1"):
        training.run(experiment(tmp_path / "none", eval_batch=0))


@pytest.mark.slow
def test_a_run_traces_the_steps_that_it_is_told_and_says_how_busy_a_known_device_was(tmp_path, monkeypatch):
    kind, flops = jax.devices()[0].device_kind, 1e12
    monkeypatch.setitem(CHIPS, kind, Chip(flops, 1e9, 1e9))
    given = experiment(tmp_path, steps=4, profile=(2, 2))
    result = training.run(given)
    assert len([*(tmp_path / "profile").rglob("*.xplane.pb")]) == 1
    assert 0 < result["goodput"] < 1  # starting and ending the trace is no wait for data
    products = flops_per_token(given.model, 32, least=True) * 4 * 32
    assert result["mfu"] == pytest.approx(products / result["step_p50_seconds"] / flops)


@pytest.mark.slow
def test_a_run_in_float16_goes_on_with_its_loss_scale(tmp_path):
    def run(folder: Path, steps: int) -> None:
        given = experiment(folder, steps=steps, save_every=3, eval_every=100)
        optim = replace(given.optim, schedule="constant")
        training.run(replace(given, optim=optim, model=replace(given.model, dtype="float16")))

    run(tmp_path / "whole", 6)
    run(tmp_path / "broken", 3)
    run(tmp_path / "broken", 6)
    train = [[row for row in losses(tmp_path / name) if row[1] == "train"] for name in ("whole", "broken")]
    assert len(train[0]) == 6 and train[0] == train[1]
    scales = [r["loss_scale"] for r in read_records(tmp_path / "broken") if "loss_scale" in r]
    assert scales == [2.0**15] * 6


@pytest.mark.slow
def test_facts_are_asked_of_the_memory_of_it_frozen_and_of_a_baseline_of_the_same_size(tmp_path, capsys):
    base = experiment(tmp_path, steps=2, eval_every=2, baseline="transformer")
    memory = MemoryConfig(rule="deltanet", heads=1, head_dim=8, chunk=16)
    model = replace(base.model, block="mac", segment=16, memory=memory)
    base = replace(base, model=model, data=replace(base.data, sequence=64, facts=0.5))
    result = training.run(base)
    _, baseline, step = training.load(tmp_path / "transformer", "last")
    assert step == 2 and baseline.config.block == "transformer" and baseline.config.persistent == model.persistent
    sizes = [metrics.count(nnx.split(each)[1]) for each in (baseline, training.load(tmp_path)[1])]
    a_width = metrics.count(nnx.split(baseline.blocks[0].mlp)[1]) / (baseline.config.ff_mult * 2)
    assert abs(sizes[0] - sizes[1]) <= a_width  # a step of the hidden width, 8 of dim 16
    names = ("memory", "memory_frozen", "transformer")
    assert all(f"{name}_{length}_recalled" in result for name in names for length in (64, 256, 1024))
    assert result["memory_bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-6)
    assert len({result[f"{name}_bits_per_byte"] for name in names}) == 3
    printed = capsys.readouterr().out
    assert "facts recalled after" in printed and (tmp_path / "recall.png").is_file()
    assert training.run(base) == result  # nothing is trained again


def test_a_baseline_without_facts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train.baseline: its figures are of data.facts, which is 0"):
        training.run(experiment(tmp_path, baseline="transformer"))
