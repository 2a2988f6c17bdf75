"""What others made, a checkpoint, a model, a corpus, a tokenizer, is read and nothing else: it runs nothing, opens
nothing outside of itself, and where it cannot be used one line says so."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from titans_jax import cli, config, data, sealed, training
from titans_jax.checkpoint import CheckpointError, Checkpoints
from titans_jax.config import Experiment
from titans_jax.nn import ModelConfig
from titans_jax.training import model_io

SMALL = ModelConfig(block="transformer", vocab_size=256, dim=8, depth=1, heads=1, head_dim=8, window=8, persistent=0)
ABSTRACT = {"params": {"w": jax.ShapeDtypeStruct((64,), jnp.float32)}}


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> Path:
    """Two steps of a checkpoint: ones and twos."""
    folder = tmp_path_factory.mktemp("steps")
    for step in (1, 2):
        Checkpoints(folder).save(step, {"params": {"w": jnp.full(64, float(step))}}, meta={"step": step})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's output folder, by another user whose config names folders and a hub."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, Experiment(model=SMALL))
    return folder


def save_run(folder: Path, experiment: Experiment, **meta: object) -> None:
    params = jax.jit(training.define(SMALL).init)(jax.random.key(0))
    written = {"experiment": config.to_json(experiment), "corpus": {}, "evaluation": None}
    Checkpoints(folder / "checkpoints").save(1, {"params": params}, meta=written | meta)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def link(path: Path) -> None:
    """Put the file or the folder elsewhere, and a link in its place."""
    path.symlink_to(path.rename(path.parents[1] / "elsewhere"))


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Change what the manifest of step 2 says, and seal it again."""
    record = sealed.read_sealed(folder / "manifests/2.json")
    change(record)
    sealed.write_sealed(folder / "manifests/2.json", record)


def from_another(folder: Path) -> None:
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    shutil.copy(folder / "manifests/1.json", folder / "manifests/2.json")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a manifest of nothing": lambda folder: (folder / "manifests/2.json").write_text("{}"),
    "a manifest that lists too little": lambda folder: rewrite(folder, lambda r: r["sha256"].pop("meta/metadata")),
    "a manifest that was edited": lambda folder: flip(folder / "manifests/2.json"),
    "a manifest of another step": from_another,
    "a name outside": lambda folder: rewrite(
        folder, lambda r: r["sha256"].update({"../1/meta/metadata": sealed.digest(folder / "1/meta/metadata")})
    ),
    "a list for a table": lambda folder: rewrite(folder, lambda r: r.update(sha256=[])),
    "a file more": lambda folder: (folder / "2/params/more").touch(),
    "a file as a link": lambda folder: link(folder / "2/meta/metadata"),
    "a folder as a link": lambda folder: link(folder / "2/params"),
    "the step as a link": lambda folder: (folder / "2").symlink_to((folder / "2").rename(folder / "elsewhere")),
    "a device": lambda folder: (folder / "2/zero").symlink_to("/dev/zero"),
    "a manifest that is a device": lambda folder: (
        (folder / "manifests/2.json").unlink(),
        (folder / "manifests/2.json").symlink_to("/dev/zero"),
    ),
    "a pipe": lambda folder: os.mkfifo(folder / "2/pipe"),
    "deep nesting": lambda folder: (folder / "manifests/2.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000),
    "a very large manifest": lambda folder: os.truncate(folder / "manifests/2.json", 1 << 40),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_step_that_is_not_what_was_written_is_passed_over(steps, tmp_path, what):
    folder = shutil.copytree(steps, tmp_path / "steps")
    DAMAGE[what](folder)
    arrays, meta, step = Checkpoints(folder).restore(ABSTRACT)
    assert step == 1 and meta == {"step": 1} and (arrays["params"]["w"] == 1).all()


def test_loading_takes_no_folders_from_a_checkpoint(tmp_path):
    data_config = data.DataConfig(cache_dir=str(tmp_path / "cache"), workers=7)
    save_run(tmp_path / "run", Experiment(model=SMALL, data=data_config))
    before = sorted(tmp_path.rglob("*"))
    experiment, *_ = training.load(tmp_path / "run")
    assert (experiment.data.cache_dir, experiment.data.workers) == (None, 0)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["eval", "audit"])
def test_a_checkpoint_alone_downloads_nothing(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "datasets", None)
    save_run(tmp_path, Experiment(model=SMALL, data=data.DataConfig(corpus="hf:someone/text")))
    where = [str(tmp_path)] if command == "audit" else ["--checkpoint", str(tmp_path), "--no-report"]
    assert cli.main([command, *where]) == 2
    assert "hf:someone/text, may be downloaded; give --corpus hf:someone/text" in capsys.readouterr().err
    assert cli.main([command, *where, "--corpus", "hf:someone/text"]) == 2
    assert "needs a library" in capsys.readouterr().err


def test_a_checkpoint_s_rule_is_imported_only_by_the_user_s_word(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("from titans_jax.memory.presets import deltanet as rule\n")
    monkeypatch.syspath_prepend(tmp_path)
    memory = dataclasses.replace(SMALL.memory, rule="theirs:rule")
    model = dataclasses.replace(SMALL, memory=memory)
    save_run(tmp_path, Experiment(model=model))
    for other in ("", "theirs:another"):
        with pytest.raises(CheckpointError, match="not imported; to trust it, give --rule theirs:rule"):
            training.load(tmp_path, rule=other)
    assert "theirs" not in sys.modules
    training.load(tmp_path, rule="theirs:rule")
    assert sys.modules.pop("theirs")


SIZES = [dict(depth=2**40), dict(dim=2**70), dict(heads=1 << 24), dict(window=1 << 24, head_dim=1 << 20)]
SIZES += [dict(persistent=2**40), dict(ff_mult=1e300), dict(ff_mult=float("inf")), dict(vocab_size=-1)]
SIZES += [dict(memory=dict(chunk=2**40)), dict(memory=dict(depth=2**20)), dict(memory=dict(conv=2**40))]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_no_model_is_begun_that_this_machine_has_no_room_for(tmp_path, sizes):
    written = config.to_json(Experiment(model=SMALL))
    for name, value in sizes.items():
        written["model"][name] = written["model"][name] | value if isinstance(value, dict) else value
    with pytest.raises(CheckpointError, match="GiB; this machine has|it must be|does not fit"):
        model_io.planned(tmp_path, config.from_json(written).model)
