"""Names that are not to be used, the left side of the table of names, and the field's terms to use in their place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "titans_jax"

ANYWHERE = {
    "Look": "Info",
    "Restart": "reset",
    "Span": "valid, is_aligned",
    "Response": "Unrolled",
    "Following": "StreamEvaluator",
    "home": "origin",
    "anew": "reset",
    "begun": "chunk_start, or what it is",
    "covers": "is_aligned",
    "by_row": "vmap_batch_heads",
    "last_start": "Unrolled's last row",
    "last_steps": "Unrolled's last row",
    "erasing": "delta_decay",
    "say": "output",
    "hold_back": "modulate_gates",
    "harness": "lm_eval",
    "heard": "what it holds",
    "told": "what it holds",
    "said": "what it holds",
    "held": "what it holds",
    "given": "what it holds",
    "taken": "what it holds",
}
IN_FOLDERS = {
    ("memory", "nn"): {
        "whole": "is_aligned, valid",
        "lay": "split",
        "back": "join",
        "sources": "gone with origin and wrappers",
        "components": "gone with origin and wrappers",
        "moving": "gone with origin and wrappers",
        "moved": "gone with origin and wrappers",
        "seen": "gone with origin and wrappers",
        "combine": "gone with origin and wrappers; the blocks' gate",
    },
    ("nn",): {"recall": "retrieve", "merge": "merge_heads"},
}
MODULES = {
    "response": "unroll",
    "following": "stream_evaluator",
    "answers": "loglikelihood",
    "page": "html",
    "relevance": "ablation",
    "inside": "introspect",
    "saved": "model_io",
    "guards": "errors",
    "writing": "decode",
    "growth": "length_scaling",
    "peers": "vs_titans_pytorch",
    "sequential": "scan_depth",
    "rounds": "interleave",
}
"""Names of modules; as names of values they may be ordinary words."""
NOT_OURS = {("Path", "home"), ("nnx", "merge")}
"""Attributes of other libraries."""
SOURCES = sorted(PACKAGE.rglob("*.py"))


def words_of(path: Path) -> dict[str, str]:
    """The names that a file may not use, each with what is written in its place."""
    folders = path.relative_to(PACKAGE).parts[:-1]
    found = dict(ANYWHERE)
    for names, words in IN_FOLDERS.items():
        if folders and folders[0] in names:
            found |= words
    return found


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module defines or uses, with their lines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, line
            case ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, line
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name, line
            case ast.Attribute(attr=name, value=value):
                if not (isinstance(value, ast.Name) and (value.id, name) in NOT_OURS):
                    yield name, line
            case ast.alias(name=name, asname=asname):
                yield (asname or name.split(".")[-1]), line
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, line
            case _:
                pass


def offences(path: Path) -> list[str]:
    """What is wrong in a file, a line each: place, name, what to write instead."""
    words, here = words_of(path), path.relative_to(PACKAGE.parent).as_posix()
    found = [f"{here}: module {path.stem} -> {MODULES[path.stem]}"] if path.stem in MODULES else []
    names = sorted({(line, name) for name, line in identifiers(ast.parse(path.read_text(encoding="utf-8")))})
    return found + [
        f"{here}:{line}: {name} -> {words[plain]}" for line, name in names if (plain := name.lstrip("_")) in words
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_field_s_terms_are_used(path):
    assert not offences(path), "\n".join(offences(path))
