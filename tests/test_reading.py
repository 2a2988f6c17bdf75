"""How much there is to read. `python tests/test_reading.py` prints every count beside its budget.

The path is the functions that a call runs through, each with its docstring. Checks of arguments, types and one-line
helpers are not on it.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMORY = ROOT / "titans_jax" / "memory"

# What a reader opens between `--model.memory.rule titans` and the gradient step, in this order, and in each the words
# that lead on. Correct it when one of them moves.
PATH = {
    "presets.titans": "learner.momentum(",  # four parts, of which the learner makes the step
    "learner.momentum": "gates.momentum * S - gates.rate * g",  # Titans Eq 14
    "api.miras": "engines(",  # a rule and a chunk length become a memory
    "api.engines": "IMPLEMENTATIONS[",
    "recurrent.recurrent": "learner.step",  # token by token: the gradient, the learner's step, the read
}
BUDGETS = {
    "lines from a preset's name to its gradient step": 180,
    "files from a preset's name to its gradient step": 4,
    "lines of titans_jax/memory/recurrent.py": 90,
    "lines of titans_jax/memory/chunked.py": 180,
    "lines of titans_jax/memory": 2_300,
    "lines of titans_jax": 16_500,
}
# Budgets that are not reached yet, and the count that may not grow until they are.
NOT_REACHED = {"lines of titans_jax/memory": 2_940, "lines of titans_jax": 22_050}


def source(name: str) -> str:
    """The text of `module.definition` of titans_jax.memory, its docstring with it."""
    module, _, wanted = name.partition(".")
    text = (MEMORY / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == wanted:
            return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    raise LookupError(f"titans_jax/memory/{module}.py defines no {wanted}: correct PATH in {__file__}")


def lines(path: Path) -> int:
    """The lines of a file, or of all Python files of a folder."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def count(what: str) -> int:
    """What a row of BUDGETS bounds."""
    unit, _, where = what.partition(" of ")
    if where:
        return lines(ROOT / where)
    if unit.startswith("files"):
        return len({name.partition(".")[0] for name in PATH})
    return sum(len(source(name).splitlines()) for name in PATH)


@pytest.mark.parametrize("what", BUDGETS)
def test_there_is_no_more_to_read_than_the_budget(what: str) -> None:
    most = NOT_REACHED.get(what, BUDGETS[what])
    assert count(what) <= most, f"{count(what)} {what}; at most {most}"


@pytest.mark.parametrize("what", NOT_REACHED)
def test_a_budget_that_is_reached_is_held(what: str) -> None:
    assert count(what) > BUDGETS[what], f"{what} is within its budget: take it out of NOT_REACHED"


@pytest.mark.parametrize("name", PATH)
def test_each_step_of_the_path_leads_to_the_next(name: str) -> None:
    assert PATH[name] in source(name), f"{name} does not say {PATH[name]!r}: correct PATH in {__file__}"


if __name__ == "__main__":
    for what, budget in BUDGETS.items():
        print(f"{count(what):>6} of at most {budget:>6} {what}")
