"""Which files of a folder are trained on, and which are held out: by their names, or refused where these do not fit.

A name is for a part if a word of it says so: `val.txt`, `wiki.train.raw`, `dev_matched.jsonl`, `test/a.txt`,
`data/train-00000-of-00001-9f3c.parquet`. Names of text and tables count, by their endings; of folders, those that say
nothing else, and have text or tables in them or only such folders beside them. They count

- where names for train and for held-out text stand side by side;
- alone, where the first or the last word says so; not in a folder that is mostly code, where `test` may mean anything.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from titans_jax.data.formats import ENDING

Files = dict[str, list[Path]]

_WORDS = {
    "train": re.compile(r"train(ing)?(set|data)?"),
    "valid": re.compile(r"(val(id(ation)?)?|dev|h[eo]ldout)(set|data)?"),
    "eval": re.compile(r"eval(uation)?(set|data)?"),
    "test": re.compile(r"test(ing)?(set|data)?"),
}
_PACKED = re.compile(r"\.(csv|tsv|arrow|bin|npy|zst|bz2|xz|zip|gz)$", re.IGNORECASE)
_NOT_READ = re.compile(rf"^[^.]+$|\.json$|{_PACKED.pattern}", re.IGNORECASE)
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|copying|citation|requirements|cmakelists)\b", re.IGNORECASE)


def parts_of(files: Sequence[Path]) -> Files:
    """The files of a folder by part.

    files: all of them, relative to the folder.
    Returns: "train", "valid" and "test" as far as there are names for them, and "ignored", what stands beside them.
    Without names for parts, all files are "train". "eval" is valid, and test where something else is valid.
    Raises ValueError, with the files that it is about: names that do not fit together.
    """
    read = {file for file in files if ENDING.search(file.name) and not _ABOUT.match(file.name)}
    if twins := [file for file in read if file.suffix.lower() == ".gz" and file.with_suffix("") in read]:
        raise _refused("files packed and unpacked, perhaps the same text twice", sorted(twins))
    code = {file for file in files if not ENDING.search(file.name) and not _NOT_READ.search(file.name)}
    named = _named(files, read, is_code=len(code) > 5 * len(read))
    if not named:
        return {"train": list(files)}
    parts: Files = defaultdict(list)
    for file in files:
        found = {part for entry in (file, *file.parents) for part in named.get(entry, ())}
        if len(found) > 1:
            raise _refused(f"a name for {' and '.join(sorted(found))} at once", [file])
        parts["ignored" if _ABOUT.match(file.name) else next(iter(found), "ignored")].append(file)
    if "train" not in parts:
        raise _refused("names for held-out text and none for train", sorted(named))
    inside = {file for part, some in parts.items() if part != "ignored" for file in some}
    if unread := [file for file in inside - read if file in named or _PACKED.search(file.name)]:
        raise _refused("parts in files that are not read; give .txt, .jsonl or .parquet", sorted(unread))
    above = {folder for entry in named for folder in entry.parents}
    apart = {file for file in code if file.parent not in above} if len(code) > len(read) else set()
    if strays := sorted((read | apart).intersection(parts["ignored"])):
        raise _refused(f"names for parts, such as {min(named)}, and other text", strays)
    evaluated = parts.pop("eval", [])
    parts["test" if "valid" in parts else "valid"] += evaluated
    return {part: sorted(parts[part]) for part in ("train", "valid", "test", "ignored") if parts[part]}


def _named(files: Sequence[Path], read: set[Path], is_code: bool) -> dict[Path, set[str]]:
    """The files and folders whose names count, each with the parts that it is for."""
    folders = {folder for file in files for folder in file.parents if folder.name}
    words = {entry: _parts_in(ENDING.sub("", entry.name)) for entry in (*files, *folders)}
    with_text = {file.parent for file in read}
    mixed = {folder.parent for folder in folders if not all(words[folder])}
    for entry, parts in [*words.items()]:
        if entry in folders:
            may_count = all(parts) and (entry in with_text or entry.parent not in mixed)
        else:
            may_count = entry in read or bool(_NOT_READ.search(entry.name))
        if not (may_count and any(parts)):
            del words[entry]
    levels: dict[Path, set[str | None]] = defaultdict(set)
    for entry, parts in words.items():
        levels[entry.parent] |= {*parts} - {None}
    counted = {entry for entry in words if "train" in levels[entry.parent] and len(levels[entry.parent]) > 1}
    if not is_code:
        counted |= {entry for entry in (read | with_text) & words.keys() if words[entry][0] or words[entry][-1]}
    return {entry: {part for part in words[entry] if part} for entry in counted}


def _parts_in(name: str) -> list[str | None]:
    """The part that each word of a name is for, other than words for texts."""
    words = re.findall("[a-z]+", re.sub("(h[eo]ld)[-_ ]out", r"\1out", name.lower()))
    parts = ((word, next((part for part, known in _WORDS.items() if known.fullmatch(word)), None)) for word in words)
    return [part for word, part in parts if part or word not in ("data", "set", "split", "text", "texts", "files")]


def _refused(why: str, files: Sequence[Path]) -> ValueError:
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return ValueError(f"{why}: {', '.join(map(str, files[:5]))}{more}; rename them, or give a folder without them")
