"""The known name that is nearest to a misspelt one, and the error that names it."""

import difflib
from collections.abc import Collection, Iterable


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


def unknown(field: str, value: object, names: Iterable[object], more: str = "") -> ValueError:
    """The error for a value that is not one of `names`: it lists them all, and the nearest.

    more: what else would be right, behind the list.

    >>> print(unknown("data.split", "tial", ["tail", "documents"]))
    data.split: 'tial' is unknown; known are tail, documents; did you mean tail?
    """
    return ValueError(f"{field}: {value!r} is unknown; {_known(str(value), names, more)}")


def not_named(what: str, name: str, names: Iterable[str], more: str = "", also: Iterable[str] = ()) -> ValueError:
    """The error for a name of a `what` that is not one of `names`, as `unknown`; also: names that are not listed.

    >>> print(not_named("pass", "train", ["forward", "training"]))
    no pass named 'train'; known are forward, training; did you mean training?
    """
    return ValueError(f"no {what} named {name!r}; {_known(name, names, more, also)}")


def _known(wrong: str, names: Iterable[object], more: str, also: Iterable[str] = ()) -> str:
    known = [str(name) for name in names]
    return f"known are {', '.join(known)}{more}{did_you_mean(wrong, [*known, *also])}"


def require_known(field: str, value: object, names: Collection[object]) -> None:
    """Raise the error of `unknown` unless `value` is one of `names`."""
    if value not in names:
        raise unknown(field, value, names)
