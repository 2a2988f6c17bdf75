"""README is held to what it says: its Python runs, its tree lists every file, its commands are the ones CI runs."""

import re
from pathlib import Path

import pytest

from titans_jax.memory.table import table

ROOT = Path(__file__).resolve().parents[1]
TOP = [".ci", "LICENSE", "README.md", "colab", "configs", "pyproject.toml", "tests", "titans_jax", "train.py"]
IN_FULL = ("titans_jax/", "configs/")  # elsewhere one line may stand for a whole folder


def blocks(tag: str) -> list[tuple[int, str]]:
    """The fenced blocks with this info string: the line each begins at, and its text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.finditer(rf"^```{re.escape(tag)}[ ]*\n(.*?)^```[ ]*$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block.group(1)) for block in found]


def listed() -> dict[str, str]:
    """The paths of README's ```text tree block, a folder ending in a slash, with the words beside each."""
    [(_, tree)] = blocks("text tree")
    paths: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in tree.splitlines():
        if not (entry := re.match(r"^([\s│├└─]*)(\S+)\s*(.*)$", line)):
            continue
        indent, name, words = len(entry[1]), entry[2], entry[3]
        while above and above[-1][0] >= indent:
            above.pop()
        path = "".join(folder for _, folder in above) + name
        assert path not in paths, f"README's tree lists {path} twice"
        paths[path] = words
        if name.endswith("/"):
            above.append((indent, name))
    return paths


def files() -> set[str]:
    """Every file a reader may open, relative to the root; an __init__ is spoken for by its folder."""
    found = [path for top in TOP for path in [ROOT / top, *(ROOT / top).rglob("*")] if path.is_file()]
    kept = (path for path in found if path.name != "__init__.py" and path.suffix not in {".pyc", ".so"})
    return {path.relative_to(ROOT).as_posix() for path in kept}


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert found, "README has no ```python block"
    for line, source in found:
        # The empty lines make a traceback name README's own line.
        exec(compile("\n" * line + source, str(ROOT / "README.md"), "exec"), {"__name__": "__main__"})


def test_the_table_of_rules_is_what_the_command_prints():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.split("<!-- titans-jax rules -->\n")[1].split("<!-- end -->")[0].strip() == table()


ITEMS = {"S0": 27, "S1": 46, "S2": 42, "S3": 50, "S4": 36}
"""How many numbered items each of the source systems has."""


def test_every_item_of_the_mission_has_its_row_and_every_file_named_there_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.split("<!-- mission -->\n")[1].split("<!-- end -->")[0].splitlines()[2:]
    found = set()
    for row in rows:
        for system, first, last in re.findall(r"(S\d|N)\.(\d+)(?:-(\d+))?", row.split("|")[1]):
            found |= {f"{system}.{number:02d}" for number in range(int(first), int(last or first) + 1)}
    missing = {f"{system}.{i:02d}" for system, count in ITEMS.items() for i in range(1, count + 1)} - found
    assert not missing, f"README's mission table lacks {sorted(missing)}"
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)", "\n".join(rows)))
    assert not {path for path in named if not (ROOT / path).exists()}


def test_tree_lists_every_file_and_nothing_else():
    tree, present = listed(), files()
    folded = {path for path in tree if path.endswith("/") and not any(p != path and p.startswith(path) for p in tree)}
    assert not [path for path in folded if path.startswith(IN_FULL)], "titans_jax and configs are listed in full"
    missing = {path for path in present if path not in tree and not path.startswith(tuple(folded))}
    assert not missing, f"README's tree lacks {sorted(missing)}"
    gone = {path for path in tree if not (ROOT / path).exists()}
    assert not gone, f"README's tree lists what is not there: {sorted(gone)}"


def test_tree_says_what_each_file_is():
    silent = [path for path, words in listed().items() if not words and not path.endswith("/")]
    assert not silent, f"README's tree says nothing about {silent}"


@pytest.mark.parametrize("tag", ["bash train", "bash test"])
def test_the_two_commands_are_tagged_for_ci(tag):
    assert len(blocks(tag)) == 1, f"README needs exactly one ```{tag} block: .ci/run executes it"
