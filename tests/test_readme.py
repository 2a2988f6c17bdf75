"""The documents hold: their Python runs, their commands parse, their links and the paths they name exist."""

import argparse
import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from titans_jax import cli, config
from titans_jax.memory import PRESETS
from titans_jax.memory.table import table

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("titans_jax/memory", "titans_jax/nn", "titans_jax/cli", "titans_jax/training", "tests")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(p for top in ("titans_jax", "tests", "colab") for p in (ROOT / top).rglob("*.md")),
]
README = ROOT / "README.md"
LIMIT = 10_240  # bytes of README.md


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> Iterator[tuple[str, int, str]]:
    """Each fenced block of a document: its info string, the line that it begins at, its text."""
    text = text_of(path)
    for block in re.finditer(r"^```([^\n`]*)\n(.*?)^```[ ]*$", text, flags=re.MULTILINE | re.DOTALL):
        yield block.group(1).strip(), text.count("\n", 0, block.start(2)), block.group(2)


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```[ ]*$", "", text_of(path), flags=re.MULTILINE | re.DOTALL)


def with_python(path: Path) -> bool:
    return any(tag == "python" for tag, _, _ in blocks(path))


@pytest.fixture
def presets_as_they_were() -> Iterator[None]:
    before = dict(PRESETS)
    yield
    PRESETS.clear()
    PRESETS.update(before)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if with_python(path)], ids=name_of)
def test_python_blocks_run(path, tmp_path, monkeypatch, presets_as_they_were):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}  # shared by the blocks of a document, which run in order
    for tag, line, source in blocks(path):
        if tag == "python":
            exec(compile("\n" * line + source, str(path), "exec"), namespace)  # a traceback names the document's line
        elif tag.startswith("python"):
            ast.parse(source)


def commands(path: Path) -> Iterator[str]:
    """The command lines of a document's bash blocks, and in RESULTS.md those in its text."""
    for tag, _, source in blocks(path):
        if tag.split(" ")[0] == "bash":
            yield from source.replace("\\\n", " ").splitlines()
    if path.name == "RESULTS.md":
        yield from (line for line in re.findall(r"`([^`\n]+)`", prose(path)) if " " in line and "..." not in line)


def words_of(line: str) -> list[str]:
    """The arguments of titans-jax that a command line gives, ["train", ...] for train.py; [] for another program."""
    words = shlex.split(line, comments=True)
    while words and ("=" in words[0] or words[0] in ("taskset", "-c", "0")):
        words.pop(0)
    if words[:2] == ["python", "train.py"]:
        return ["train", *words[2:]]
    return words[1:] if words[:1] == ["titans-jax"] else []


GIVEN = [
    pytest.param(words, id=f"{name_of(path)}: {' '.join(words)}")
    for path in DOCUMENTS
    for words in dict.fromkeys(tuple(words_of(line)) for line in commands(path))
    if words
]


@pytest.mark.parametrize("words", GIVEN)
def test_commands_parse(words, monkeypatch, capsys):
    ran = []

    def parsed(options: argparse.Namespace) -> None:
        ran.append(options)
        if getattr(options, "config", None):
            changes = itertools.dropwhile(lambda word: not word.startswith("-"), options.changes)  # compare's models
            config.override(config.load(options.config), list(changes))

    def train(experiment: config.Experiment, *, resume: bool, change: list[str]) -> None:
        ran.append(experiment)
        experiment.model.check()

    for name in set(cli.COMMANDS) - {"train"}:
        monkeypatch.setattr(cli.module_of(name), "run", parsed)
    monkeypatch.setattr(importlib.import_module("titans_jax.training.command"), "train", train)
    try:
        code = cli.main(list(words))
    except SystemExit as exit_:
        code = exit_.code
    assert code in (0, None), capsys.readouterr().err
    assert ran or "--help" in words


@pytest.mark.parametrize("tag", ["bash train", "bash test"])
def test_the_two_commands_are_tagged_for_ci(tag):
    assert [t for t, _, _ in blocks(README)].count(tag) == 1, f"README needs one ```{tag} block: .ci/run executes it"


def test_readme_is_short():
    assert len(README.read_bytes()) <= LIMIT


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_its_readme_and_the_first_one_links_to_it(folder):
    assert (ROOT / folder / "README.md").is_file()
    assert f"({folder}/README.md)" in text_of(README)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_tests_that_are_named_exist(path):
    assert not [*missing_of(" ".join(re.findall(r"`[^`\s]+::\w+`", text_of(path))))]


def test_the_table_of_rules_is_what_the_command_prints():
    text = text_of(ROOT / "titans_jax/memory/README.md")
    printed = text.split("<!-- titans-jax rules -->\n")[1].split("<!-- end -->")[0].strip()
    assert printed == table(), "put what `titans-jax rules` prints between the two comments"


SYSTEMS = {"S0": 27, "S1": 46, "S2": 42, "S3": 50, "S4": 36, "N": 20}
"""How many numbered items each source of the mission has."""
NAMED = re.compile(r"`((?:titans_jax|tests|colab|configs|\.ci)/[^`:\s]*)(?:::(\w+))?`")


def test_the_mission_is_complete_and_says_where_everything_is():
    rows = [line.split("|")[1:-1] for line in text_of(ROOT / "tests/MISSION.md").splitlines() if line.startswith("| ")]
    items = [[cell.strip() for cell in row] for row in rows if re.fullmatch(r" (S\d|N)\.\d\d ", row[0])]
    expected = [f"{system}.{i:02d}" for system, count in SYSTEMS.items() for i in range(1, count + 1)]
    assert [item[0] for item in items] == expected
    assert all(len(item) == 5 and item[4].split(":")[0] in ("works", "partly", "open") for item in items)
    states = [item[4].split(":")[0] for item in items]
    counts = f"{states.count('works')} work, {states.count('partly')} partly, {states.count('open')} are open."
    assert counts in text_of(ROOT / "tests/MISSION.md")
    lacking = [f"{item[0]}: {missing}" for item in items for missing in missing_of(" ".join(item[2:]))]
    assert not lacking, "\n".join(lacking)
    silent = [item[0] for item in items if item[4] != "open" and not (item[2] and item[3])]
    assert not silent, f"these have no place or no test: {silent}"


def missing_of(text: str) -> Iterator[str]:
    """The paths and the tests that a text names and that do not exist."""
    for path, test in NAMED.findall(text):
        if not (ROOT / path).exists():
            yield path
        elif test and f"def {test}(" not in text_of(ROOT / path):
            yield f"{path}::{test}"
