"""One error for a name that is not among the known ones."""

import difflib
from collections.abc import Iterable


def unknown(label: str, value: str, choices: Iterable[str], more: str = "") -> ValueError:
    """The error for a value that is not one of `choices`: it names the nearest one and lists them all.

    >>> print(unknown("data.split='tial'", "tial", ["tail", "documents"]))
    data.split='tial': did you mean 'tail'? It must be one of tail, documents
    """
    choices = list(choices)
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {near[0]!r}? It" if near else "it"
    return ValueError(f"{label}: {hint} must be one of {', '.join(choices)}{more}")
