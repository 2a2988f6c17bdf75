"""Experiments as values: files, the command line, JSON, and what is refused before anything compiles."""

import json
from dataclasses import replace

import pytest

from titans_jax import config
from titans_jax.config import Experiment


def test_every_config_loads_fits_and_describes_itself():
    found = config.available()
    assert {"tiny", "lmm", "mac", "mag", "mal", "transformer", "hope", "tnt"} <= found.keys()
    assert {"titans_170m", "titans_340m", "titans_760m", "titans_1_3b"} <= found.keys()
    for name, line in found.items():
        experiment = config.load(name)
        config.validate(experiment, vocabulary=256, shards=1)
        assert line and experiment.name == name
        assert str(experiment.output) == f"outputs/{name}"


def test_blocks_differ_from_tiny_in_the_block_alone():
    tiny = config.load("tiny")
    for name in ("lmm", "mac", "mag", "mal", "transformer"):
        expected = replace(tiny, name=name, model=replace(tiny.model, block=name))
        assert config.load(name) == expected


def test_load_takes_a_path_and_says_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from titans_jax.config import Experiment\ndef get_config(): return Experiment(name='mine')\n")
    assert config.load(str(path)) == Experiment(name="mine")
    path.write_text("get_config = lambda: 3\n")
    with pytest.raises(ValueError, match="must define get_config"):
        config.load(str(path))
    with pytest.raises(ValueError, match="no config named 'tiney'; did you mean tiny"):
        config.load("tiney")


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """A folder to work in, with an empty folder of configs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path / "configs"


def test_a_config_that_does_not_parse_harms_no_other(working_folder):
    (working_folder / "broken.py").write_text('"""Broken."""\ndef (:\n')
    (working_folder / "latin.py").write_bytes(b'"""\xe9"""')
    assert config.load("tiny").name == "tiny"
    found = config.available()
    for name in ("broken", "latin"):
        assert found[name].startswith(f"(configs/{name}.py cannot be read: ") and "\n" not in found[name]
        with pytest.raises(ValueError, match=f"configs/{name}.py, line ") as error:
            config.load(name)
        assert "\n" not in str(error.value)


def test_a_config_of_the_working_folder_is_used_and_said_so(working_folder, caplog):
    config.load("tiny")
    assert not caplog.messages
    (working_folder / "tiny.py").write_text(
        "from titans_jax.config import Experiment\ndef get_config(): return Experiment(name='mine')\n"
    )
    assert config.load("tiny").name == "mine"
    [message] = caplog.messages
    assert message.startswith("config tiny: configs/tiny.py is used, not /")


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ishmael")
    assert str(Experiment(output_dir="~/runs").output) == "/home/ishmael/runs"


def test_override_changes_what_is_named_and_nothing_else():
    start = config.load("tiny")
    changed = config.override(
        start, ["--model.block", "mag", "--optim.name=lion", "--mesh", "data=4,fsdp=2", "--train.eval-batches", "None"]
    )
    assert changed == replace(
        start,
        mesh="data=4,fsdp=2",
        model=replace(start.model, block="mag"),
        optim=replace(start.optim, name="lion"),
        train=replace(start.train, eval_batches=None),
    )
    assert config.override(start, ["--model.remat"]).model.remat
    assert config.override(start, ["--model.memory.chunk", "32"]).model.memory.chunk == 32
    assert config.override(start, ["--model.head_dim", "8"]).model.head_dim == 8  # either spelling


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.dpeth", "no option --model.dpeth; did you mean --model.depth?"),
        ("--depth", "no option --depth; did you mean --model.depth?"),
        ("--optim.peak_rte=3", "no option --optim.peak-rte; did you mean --optim.peak-rate?"),
        ("--qqqqqqqq", "no option --qqqqqqqq"),
    ],
)
def test_a_misspelt_field_names_the_right_one(argument, message):
    with pytest.raises(ValueError) as error:
        config.override(Experiment(), [argument, "3"])
    assert str(error.value) == message


@pytest.mark.parametrize(
    "arguments", [["--model.depth", "many"], ["--data.packing", "tight"], ["--optim.name", "adamm"]]
)
def test_a_wrong_value_is_one_line_that_names_it(arguments):
    with pytest.raises(ValueError) as error:
        config.override(Experiment(), arguments)
    assert arguments[1] in str(error.value) and "\n" not in str(error.value)


def test_json_round_trip_of_every_config():
    for name in config.available():
        experiment = config.load(name)
        assert config.from_json(json.loads(json.dumps(config.to_json(experiment)))) == experiment


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model", "dpeth"], 3, r"experiment\.model\.dpeth is not a field of ModelConfig; did you mean depth\?"),
        (["model", "depth"], "3", r"experiment\.model\.depth is '3'"),
        (["model", "depth"], True, r"experiment\.model\.depth is True"),
        (["data", "packing"], "tight", r"experiment\.data\.packing is 'tight'"),
        (["train"], 3, r"experiment\.train is 3"),
    ],
)
def test_json_is_read_strictly(path, value, message):
    data = config.to_json(Experiment())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        config.from_json(data)


def test_an_absent_key_keeps_its_default():
    assert config.from_json({"name": "x"}) == Experiment(name="x")
    assert config.from_json({"optim": {"clip": 1}}).optim.clip == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.vocab-size", "100"], "set --model.vocab-size 256"),
        (["--data.batch", "6"], "set --data.batch 8"),
        (["--data.batch", "24", "--optim.accumulation", "4"], "in optim.accumulation 4 parts; set --data.batch 32"),
        (["--train.profile", "0", "3"], "a first step and a count"),
        (["--data.packing", "documents"], "set --data.align 64"),
        (["--model.block", "mad"], "model.block"),
        (["--model.weight-residual", "--model.memory.rule", "deltanet"], "model.weight_residual: deltanet"),
        (["--train.steps", "0"], "train.steps is 0"),
        (["--train.label-smoothing", "1"], "train.label_smoothing"),
        (["--train.eval-batches", "0"], "train.eval_batches"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(arguments, message):
    experiment = config.override(config.load("tiny"), arguments)
    with pytest.raises(ValueError) as error:
        config.validate(experiment, vocabulary=256, shards=4)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_installed_package_has_its_configs_inside(tmp_path, monkeypatch):
    for folder in ("site-packages/configs", "site-packages/titans_jax/configs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{len(folder)}.py").write_text('"""One."""')
    monkeypatch.setattr(config, "__file__", str(tmp_path / "site-packages/titans_jax/config.py"))
    monkeypatch.chdir(tmp_path)
    assert config.available() == {"32": "One."}  # the longer of the two names
