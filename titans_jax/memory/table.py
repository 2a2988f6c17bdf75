"""The table of rules as text: what each row of `PRESETS` is made of, and which engines serve it."""

import ast
import inspect

from titans_jax.memory.api import IMPLEMENTATIONS, miras
from titans_jax.memory.presets import PRESETS
from titans_jax.memory.types import Rule

PARTS = ("architecture", "bias", "retention", "learner")


def table() -> str:
    """In markdown, each rule's four choices, where its gradient is taken, and its engines; then why it has no others.

    >>> print(table().splitlines()[2])
    | titans | mlp | l2 | decay | momentum | chunk_start | chunked, recurrent |
    """
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        rule, made = preset(4), _parts(name)
        refused = {engine: why for engine in IMPLEMENTATIONS if (why := _refusal(rule, engine))}
        for why in refused.values():
            reasons.setdefault(why, []).append(name)
        engines = [engine for engine in IMPLEMENTATIONS if engine not in refused]
        rows.append([name, *(", ".join(made[part]) for part in PARTS), rule.learner.grad_at, ", ".join(engines)])
    head = ["rule", *PARTS, "gradient at", "engines"]
    lines = [head, ["---"] * len(head), *rows]
    notes = [f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", "Not served, and why:", "", *notes])


def _refusal(rule: Rule, engine: str) -> str | None:
    try:
        miras(rule, chunk=4, implementation=engine)
    except NotImplementedError as reason:
        return str(reason).removeprefix(f"{engine}: ")
    return None


def _parts(name: str) -> dict[str, list[str]]:
    """The constructors that a preset's source names, and for parts that it does not name, those of presets it calls."""
    tree = ast.parse(inspect.getsource(PRESETS[name]))
    used: dict[str, list[str]] = {part: [] for part in PARTS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
            used[node.value.id].append(node.attr)
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    for other in sorted(called & set(PRESETS)):
        used = {part: found or _parts(other)[part] for part, found in used.items()}
    return used
