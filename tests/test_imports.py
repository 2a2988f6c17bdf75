"""The arrows between modules, read from the source: an import inside a function counts like one at the top."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "titans_jax"

LEAVES = {"memory", "sharding", "optim", "data", "loss", "metrics", "checkpoint", "plots"}
LEAVES |= {"compiling", "files", "json_values", "nearest", "sealed", "waiting", "tensorboard", "disk"}
MIDDLE = {"nn", "config", "decode", "interop"}
ARROWS: dict[str, set[str]] = {
    "__init__": {"config", "decode", "memory", "nn", "optim"},
    **{leaf: set() for leaf in LEAVES},
    **{leaf: {"files"} for leaf in ("plots", "sealed", "tensorboard")},
    "checkpoint": {"disk", "files", "sealed"},
    "metrics": {"files", "tensorboard", "waiting"},
    "data": {"files", "nearest", "sealed"},
    "json_values": {"nearest"},
    "optim": {"nearest"},
    "results": {"files", "metrics"},
    "nn": {"memory", "sharding", "nearest"},
    "config": {"nn", "memory", "optim", "data", "nearest", "files", "json_values"},
    "decode": {"nn", "memory", "sharding", "compiling"},
    "interop": {"nn", "memory"},
    "series": {"memory", "plots"},
    "evaluation": LEAVES | MIDDLE,
    "training": LEAVES | MIDDLE | {"evaluation", "results"},
    "export": LEAVES | MIDDLE | {"training"},
    "needle": LEAVES | MIDDLE | {"training", "export", "results"},
    "bench": LEAVES | MIDDLE | {"results", "evaluation", "training"},
    "cli": LEAVES | MIDDLE | {"results", "evaluation", "series", "training", "export", "needle", "bench"},
    "__main__": {"cli", "waiting"},
    "train.py": {"__main__"},
    "configs": {"config", "nn", "memory", "optim", "data"},
}
ONLY_JAX = {"memory", "sharding"}
IMPORTED_AS = {
    "orbax-checkpoint": "orbax",
    "tensorflow-datasets": "tensorflow_datasets",
    "lm-eval": "lm_eval",
    "titans-pytorch": "titans_pytorch",
}
NOT_DECLARED_BUT_SURE = {"absl"}  # jax's own companions ask for it; grain's workers need its flags parsed

SOURCES = sorted([ROOT / "train.py", *PACKAGE.rglob("*.py"), *(ROOT / "configs").rglob("*.py")])


def part(path: Path) -> str:
    """The row of ARROWS that a file falls under."""
    inside = path.relative_to(ROOT).parts
    return inside[0] if inside[0] != "titans_jax" else inside[1].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The dotted names a file imports, down to `titans_jax.part`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it out from titans_jax"
            assert node.module is not None
            whole = node.module == "titans_jax"
            yield from (f"titans_jax.{alias.name}" if whole else node.module for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    here = part(path)
    assert here in ARROWS, f"{path} is in no row of the table of arrows"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "titans_jax":
            there = rest.partition(".")[0]
            allowed = ARROWS[here] | {here, "__version__"}
            assert there in allowed, f"{here} imports {there}; it may import {sorted(allowed - {here})}"
        elif top == "configs":
            assert here in {"configs", "config", "train.py"}, f"{here} imports an experiment: {name}"
        elif here in ONLY_JAX:
            assert top in ("jax", "numpy") or top in sys.stdlib_module_names, f"{here} imports {top}; it may import jax"


def test_every_third_party_import_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in ("plot", "eval", "hf", "parity") for each in extras[extra])]
    names = {re.split(r"[\[<>=~ ]", requirement)[0] for requirement in wanted}
    known = {IMPORTED_AS.get(name, name) for name in names} | {"titans_jax", "configs"} | NOT_DECLARED_BUT_SURE
    for path in SOURCES:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops <= known | sys.stdlib_module_names, (
            f"{path} imports {sorted(tops - known - sys.stdlib_module_names)}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < 300, f"{path} has {lines} lines: is it two things?"
