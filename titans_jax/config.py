"""Experiments: loaded from configs/, changed by command-line flags, converted to JSON and back."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import logging
import math
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from titans_jax.data import DataConfig, check_seed, is_text
from titans_jax.files import expand
from titans_jax.json_values import parse
from titans_jax.nearest import did_you_mean
from titans_jax.nn import ModelConfig
from titans_jax.optim import OptimConfig

Config = typing.TypeVar("Config")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """The length of a training run, the loss, evaluation and checkpoints."""

    steps: int = 400
    """Updates. Each takes one batch."""
    epochs: float | None = None
    """Passes over the training text, instead of steps; None to use steps."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data and the samples."""
    label_smoothing: float = 0.0
    """Probability spread evenly over the vocabulary in the target."""
    z_loss: float = 0.0
    """Weight of the penalty log(sum(exp(logits)))^2."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = 100
    """Steps between two evaluations on held-out text; the last step is always evaluated."""
    eval_batches: int | None = 16
    """Held-out batches of an evaluation; None for all held-out text."""
    eval_batch: int | None = None
    """Sequences of an evaluation batch; None for data.batch."""
    save_every: int = 100
    """Steps between two checkpoints; each evaluation saves one too."""
    keep: int = 2
    """Number of latest checkpoints to keep, besides the best one."""
    not_finite: typing.Literal["stop", "skip", "rollback"] = "stop"
    """At a loss or gradient that is not finite: stop, skip the update, or pass over all since the last checkpoint."""
    patience: int = 10
    """The run stops at this many skips in a row, or before this many returns to one checkpoint."""
    prompt: str = "The "
    """Prompt of the sample at the end."""
    sample: int = 256
    """Tokens of the sample at the end; 0 for none."""
    profile: tuple[int, int] | None = None
    """First step and number of steps that jax.profiler traces into OUTPUT/profile; None for none."""
    baseline: str = ""
    """Block of a model of as many parameters that is trained too, for the figures of data.facts; empty for none."""


@dataclass(frozen=True)
class Experiment:
    """The configuration of a run."""

    name: str = "experiment"
    """Name of the output folder if output_dir is empty."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: str = ""
    """Devices per mesh axis, such as data=4,fsdp=2; empty for data parallelism over all devices."""
    output_dir: str = ""
    """Folder of results and checkpoints; empty for outputs/NAME."""

    @property
    def output(self) -> Path:
        """The output folder."""
        return expand(self.output_dir or f"outputs/{self.name}")


def _folders() -> list[Path]:
    """The folders of configs: of the working folder, and of the package; a checkout has them beside the package."""
    package = Path(__file__).parent
    inside = package / "configs"
    return [Path("configs"), inside if inside.is_dir() else package.parent / "configs"]


def available() -> dict[str, str]:
    """Every config's name and the first line of its docstring, without importing it."""
    found: dict[str, str] = {}
    for folder in _folders():
        for path in sorted(folder.glob("*.py")):
            if path.stem != "__init__":
                found.setdefault(path.stem, _first_line(path))
    return found


def _first_line(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
    except (SyntaxError, ValueError, OSError) as error:
        return f"({path} cannot be read: {error})"


def load(name_or_path: str) -> Experiment:
    """The experiment that get_config() of configs/NAME.py, or of a Python file, returns.

    A config of the working folder is used before the package's of this name, with a warning.
    Raises ValueError if there is no such file, or it does not parse, or get_config does not return an Experiment.
    """
    path = Path(name_or_path)
    if path.suffix != ".py":
        found = [file for folder in _folders() if (file := folder / f"{name_or_path}.py").is_file()]
        path = next(iter(found), path)
        if found and not path.samefile(found[-1]):
            _log.warning("config %s: %s is used, not %s", name_or_path, path, found[-1])
    if not path.is_file():
        raise ValueError(
            f"no config named {name_or_path!r}{did_you_mean(name_or_path, available())}; see train.py --help"
        )
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    experiment = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} must define get_config() -> titans_jax.config.Experiment")
    return experiment


def override(
    experiment: Config, arguments: Sequence[str], prog: str = "train.py NAME", flags: Iterable[str] = ()
) -> Config:
    """The experiment, or another dataclass, changed by `--section.field value` arguments.

    flags: the other options of the command, which an error may suggest.

    `--help` prints every field and exits. Raises ValueError for an unknown field, with a suggestion, and for a value of
    the wrong type.
    """
    known = set(flags_of(type(experiment)))
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known and flag != "--help":
            raise ValueError(f"no option {flag}{did_you_mean(flag, {*known, *flags})}")
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(type(experiment), default=experiment, args=list(arguments), prog=prog)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # tyro prints a title, the error, a horizontal rule and advice, in a box where the terminal's encoding has one.
        lines = (line.strip("│ ") for line in message.getvalue().splitlines()[1:])
        error = itertools.takewhile(lambda line: not _is_rule(line), itertools.dropwhile(_is_rule, lines))
        raise ValueError(" ".join(error)) from None


def _is_rule(line: str) -> bool:
    return line.startswith(("─", "---"))


def flags_of(cls: type, prefix: str = "--") -> Iterator[str]:
    """The command-line flags of a configuration class."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        name = f.name.replace("_", "-")
        yield f"{prefix}{name}"
        if hints[f.name] is bool:
            yield f"{prefix}no-{name}"
        elif dataclasses.is_dataclass(hints[f.name]):
            yield from flags_of(typing.cast(type, hints[f.name]), f"{prefix}{name}.")


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as nested dicts of JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_json(data: dict[str, Any]) -> Experiment:
    """The experiment of a `to_json` dict; a missing key has its default.

    Raises ValueError for an unknown key and for a value of the wrong type.

    >>> from_json(to_json(Experiment(name="x"))) == Experiment(name="x")
    True
    """
    return parse(Experiment, data, "experiment")


def validate(experiment: Experiment, *, vocabulary: int, shards: int) -> None:
    """Check an experiment before anything compiles.

    vocabulary: tokens of the tokenizer.
    shards: devices that share a batch.
    Raises ValueError with one line: what is wrong, and a valid value.
    """
    model, data, train = experiment.model, experiment.data, experiment.train
    model.check()
    for name in ("steps", "log_every", "eval_every", "save_every", "keep", "patience"):
        if getattr(train, name) < 1:
            raise ValueError(f"train.{name} is {getattr(train, name)}; it must be at least 1")
    check_seed("train.seed", train.seed)
    if train.profile is not None and min(train.profile) < 1:
        raise ValueError(f"train.profile is {train.profile}; give a first step and a count, at least 1")
    if train.eval_batches is not None and train.eval_batches < 1:
        raise ValueError(f"train.eval_batches is {train.eval_batches}; give at least 1, or None for all held-out text")
    if train.sample < 0:
        raise ValueError(f"train.sample is {train.sample}; it must be 0 or more tokens")
    if not is_text(train.prompt):
        raise ValueError(f"train.prompt is {train.prompt!r}, which is not UTF-8 text")
    if train.baseline and not data.facts:
        raise ValueError("train.baseline: its figures are of data.facts, which is 0; set --data.facts 0.25")
    if train.baseline:
        dataclasses.replace(model, block=train.baseline).check()
    if not 0 <= train.label_smoothing < 1:
        raise ValueError(f"train.label_smoothing is {train.label_smoothing}; it must be in [0, 1)")
    if vocabulary > model.vocab_size:
        raise ValueError(
            f"tokenizer {data.tokenizer!r} has {vocabulary} tokens but model.vocab_size is {model.vocab_size}; "
            f"set --model.vocab-size {vocabulary}"
        )
    start = model.segment if "mac" in model.pattern else model.memory.chunk
    if model.learns_inside:
        start = math.lcm(start, *(period for period in model.cms.periods if period))
    if data.packing == "documents" and data.align % start and model.pattern != ("transformer",):
        raise ValueError(
            f"data.align is {data.align}, but memories are reset only at multiples of {start}; set --data.align {start}"
        )
    parts = experiment.optim.accumulation
    for name, rows, unit in (
        ("data.batch", data.batch, shards * parts),
        ("train.eval_batch", train.eval_batch, shards),
    ):
        if rows is not None and (rows < 1 or rows % unit):
            each = f", in optim.accumulation {parts} parts" if unit > shards else ""
            raise ValueError(
                f"{name} {rows} does not divide over the {shards} devices that share a batch{each}; "
                f"set --{name.replace('_', '-')} {max(-(-rows // unit), 1) * unit}"
            )
