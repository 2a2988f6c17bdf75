"""What others made, a checkpoint, a model, a corpus, a tokenizer, is read and nothing else: it runs nothing, opens
nothing outside of itself, and where it cannot be used one line says so."""

import ast
import contextlib
import dataclasses
import gc
import gzip
import itertools
import json
import os
import random
import re
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


@pytest.mark.parametrize("command", ["eval", "audit", "replay"])
def test_a_checkpoint_alone_downloads_nothing(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "datasets", None)
    save_run(tmp_path, Experiment(model=SMALL, data=data.DataConfig(corpus="hf:someone/text")))
    where = {"audit": [str(tmp_path)], "replay": [str(tmp_path), "1"]}
    where = where.get(command, ["--checkpoint", str(tmp_path), "--no-report"])
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


def test_a_tokenizer_s_tables_are_not_made_as_large_as_its_ids(tmp_path):
    data.train_bpe(["a small text"], 257, tmp_path / "bpe.json")
    record = json.loads((tmp_path / "bpe.json").read_text(encoding="utf-8"))
    record["model"]["vocab"]["a"] = 4_000_000_000
    (tmp_path / "bpe.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="the id 4,000,000,000; at most 16,777,216 ids"):
        data.load_tokenizer(str(tmp_path / "bpe.json"))


MUTANTS = 300
OURS = (ValueError, OSError, CheckpointError)  # those that the command line turns into one line


@pytest.fixture(scope="module")
def targets(run, tmp_path_factory) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Files that others made, small, each with what reads it."""
    folder = tmp_path_factory.mktemp("targets")
    exported = folder / "model"
    experiment, model, step = training.load(run)
    data.train_bpe(["a small text, a small text"], 262, folder / "bpe.json")
    model_io.save_model(exported, experiment, model, step, {"corpus": {}, "evaluation": None})
    (folder / "text.txt").write_text("Call me Ishmael. " * 20)
    (folder / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n' * 8)
    (folder / "packed.txt.gz").write_bytes(gzip.compress(b"Call me Ishmael. " * 20))

    def read_corpus(name: str) -> Callable[[], object]:
        return lambda: data.load_documents(str(folder / name))

    def load_exported() -> object:
        """Sealed again, as by someone who wants to."""
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads((exported / "config.json").read_text(encoding="utf-8"))
            if isinstance(record, dict) and isinstance(record.get("sha256"), dict):
                record.pop("seal", None)
                record["sha256"]["model.safetensors"] = sealed.digest(exported / "model.safetensors")
                sealed.write_sealed(exported / "config.json", record)
        return training.load(exported)

    def load_run() -> object:
        """Sealed again too."""
        step = run / "checkpoints/1"
        sealed.write_sealed(run / "checkpoints/manifests/1.json", {"step": 1, "sha256": sealed.digests(step)})
        return training.load(run)

    found: dict[str, tuple[Path, Callable[[], object]]] = {
        "config": (exported / "config.json", load_exported),
        "safetensors": (exported / "model.safetensors", load_exported),
        "tokenizer": (folder / "bpe.json", lambda: data.load_tokenizer(str(folder / "bpe.json"))),
    }
    found |= {name: (folder / name, read_corpus(name)) for name in ("text.txt", "rows.jsonl", "packed.txt.gz")}
    parts = sorted(path for path in (run / "checkpoints/1").rglob("*") if path.is_file())
    return found | {f"step/{path.relative_to(run / 'checkpoints/1')}": (path, load_run) for path in parts}


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """A file after a small accident, or with a value of another kind or size."""
    numbers = re.findall(rb"(?<=[ :\[])-?\d+(?=[,\]\s}])", raw[:20_000])
    where, end = rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)
    match rng.randrange(8 if numbers else 6):
        case 0:
            return raw[:where]
        case 1:
            return raw[:where] + bytes(rng.randrange(256) for _ in range(8)) + raw[where:]
        case 2:
            return raw[: min(where, end)] + raw[max(where, end) :]
        case 3:
            return bytes(len(raw)) if rng.randrange(2) else b""
        case 4:
            return raw[:where] + b"[" * 20_000 + raw[where:]
        case 5:
            spoilt = bytearray(raw)
            for _ in range(rng.randrange(1, 4)):
                spoilt[rng.randrange(min(len(raw), 2_000))] ^= 1 << rng.randrange(8)
            return bytes(spoilt)
    other = rng.choice(
        [b"null", b"-1", b"1e400", b"18446744073709551617", b"1099511627776", b"[]", b'"x"', b"{}", b"0.5"]
    )
    at = rng.randrange(len(numbers))
    counter = itertools.count()
    return (
        re.sub(rb"(?<=[ :\[])-?\d+(?=[,\]\s}])", lambda m: other if next(counter) == at else m[0], raw[:20_000])
        + raw[20_000:]
    )


def test_what_is_mutated_is_read_or_refused_in_one_of_our_errors(targets, monkeypatch):
    """300 mutants, the checkpoints' and models' sealed again. No crash, no other error, and not much memory."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # of coroutines that orbax leaves where it fails
    rng = random.Random(0)
    parts, refused = [name for name in targets if name.startswith("step/")], 0
    kinds = [*(name for name in targets if name not in parts), "step/meta/metadata", "a part of the step"]
    for number in range(MUTANTS):
        name = kinds[number % len(kinds)]
        path, read = targets[name if name in targets else rng.choice(parts)]
        whole = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
        path.write_bytes(mutated(whole[path], rng))
        try:
            read()
        except OURS as error:
            refused += 1
            assert str(error), name
        except BaseException as error:
            raise AssertionError(f"mutant {number} of {name}: {type(error).__name__}: {error}") from error
        finally:
            for file, raw in whole.items():
                file.write_bytes(raw)
    gc.collect()
    assert refused > MUTANTS // 3


SOURCES = sorted(Path(cli.__file__).parents[1].rglob("*.py"))
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
IMPORTERS = {  # each is given by the user, or fixed: see what stands beside it
    "titans_jax/__init__.py": 1,  # names of our own modules
    "titans_jax/cli/__init__.py": 1,  # names of our own commands
    "titans_jax/nn/config.py": 1,  # model.memory.rule, which loading refuses without --rule
    "titans_jax/bench/processes.py": 1,  # a measurement of ours, in another process
}


def test_nothing_in_the_source_runs_what_a_file_says():
    imports: dict[str, int] = {}
    for path in SOURCES:
        name = f"titans_jax/{path.relative_to(Path(cli.__file__).parents[1]).as_posix()}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=called)):
                    assert called not in FORBIDDEN, f"{name}:{node.lineno}: {called}"
                case ast.Import(names=names):
                    assert not {alias.name.partition(".")[0] for alias in names} & MODULES, f"{name}:{node.lineno}"
                case ast.ImportFrom(module=str(module)):
                    assert module.partition(".")[0] not in MODULES, f"{name}:{node.lineno}"
                case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=ast.Constant(value=True)):
                    raise AssertionError(f"{name}: {node.arg}=True")
                case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                    raise AssertionError(f"{name}:{node.lineno}: torch.load")
                case ast.Attribute(attr="import_module"):
                    imports[name] = imports.get(name, 0) + 1
                case _:
                    pass
    assert imports == IMPORTERS
