"""The known name that is nearest to a misspelt one."""

import difflib
from collections.abc import Iterable


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest known name, or "". It compares whole names first, then their last parts.

    >>> did_you_mean("--depht", ["--model.depth", "--model.dim"])
    '; did you mean --model.depth?'
    """
    known = sorted(known, key=lambda name: (name.count("."), name))  # prefers the least nested of equal matches
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.75)
    if not near:
        last = {name.rpartition(".")[2].lstrip("-"): name for name in reversed(known)}
        near = [last[m] for m in difflib.get_close_matches(wrong.rpartition(".")[2].lstrip("-"), last, n=1)]
    return f"; did you mean {near[0]}?" if near else ""
