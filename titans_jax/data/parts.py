"""Which files of a folder are trained on, and which are held out: by their names, or refused where these do not fit.

A name is for a part if a word of it says so: `val.txt`, `wiki.train.raw`, `dev_matched.jsonl`, `test/a.txt`,
`data/train-00000-of-00001-9f3c.parquet`. Two kinds of names count:

- of text and tables, by their endings, and of folders that have such files, where the first or the last word says so;
  not in a folder with more code than text, where `test` may mean anything;
- where names for train and for held-out text stand side by side, those of all text, tables and folders.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from titans_jax.data.formats import ENDING

Files = dict[str, list[Path]]

_WORDS = {
    "train": re.compile(r"train(ing)?(set|data)?"),
    "valid": re.compile(r"(val(id(ation)?)?|dev|h[eo]ldout)(set|data)?"),
    "eval": re.compile(r"eval(uation)?(set|data)?"),
    "test": re.compile(r"test(ing)?(set|data)?"),
}
_NOT_READ = re.compile(r"^[^.]+$|\.(csv|tsv|json|arrow|bin|npy|zst|bz2|xz|zip|gz)$", re.IGNORECASE)
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|copying|citation|requirements)\b", re.IGNORECASE)


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
    is_code = len(code) > len(read)
    named = _named(files, read, is_code)
    if not named:
        return {"train": list(files)}
    parts: Files = defaultdict(list)
    for file in files:
        found = {part for entry in (file, *file.parents) for part in named.get(entry, ())}
        if len(found) > 1:
            raise _refused(f"a name for {' and '.join(sorted(found))} at once", [file])
        parts[next(iter(found), "ignored")].append(file)
    if "train" not in parts:
        raise _refused("names for held-out text and none for train", sorted(named))
    if unread := [file for file in files if file in named and file not in read]:
        raise _refused("parts in files that are not read; give .txt, .jsonl or .parquet", unread)
    above = {folder for entry in named for folder in entry.parents}
    text = {*read, *(file for file in code if is_code and file.parent not in above)}
    if strays := [file for file in parts["ignored"] if file in text]:
        raise _refused(f"names for parts, such as {min(named)}, and other text", strays)
    evaluated = parts.pop("eval", [])
    parts["test" if "valid" in parts else "valid"] += evaluated
    return {part: sorted(parts[part]) for part in ("train", "valid", "test", "ignored") if parts[part]}


def _named(files: Sequence[Path], read: Collection[Path], is_code: bool) -> dict[Path, set[str]]:
    """The files and folders whose names count, each with the parts that it is for."""
    folders = {folder for file in files for folder in file.parents if folder.name}
    readable = {*read, *(file.parent for file in read)}
    named, certain = {}, set()
    beside: dict[Path, set[str]] = defaultdict(set)
    for entry in (*files, *folders):
        words = _parts_in(ENDING.sub("", entry.name))
        if parts := {part for part in words if part}:
            if entry in folders or entry in read or _NOT_READ.search(entry.name):
                named[entry] = parts
                beside[entry.parent] |= parts
            if entry in readable and not is_code and (words[0] or words[-1]):
                certain.add(entry)
    pairs = {folder for folder, parts in beside.items() if "train" in parts and len(parts) > 1}
    return {entry: parts for entry, parts in named.items() if entry in certain or entry.parent in pairs}


def _parts_in(name: str) -> list[str | None]:
    """The part that each word of a name is for."""
    words = re.findall("[a-z]+", re.sub("(h[eo]ld)[-_ ]out", r"\1out", name.lower()))
    return [next((part for part, pattern in _WORDS.items() if pattern.fullmatch(word)), None) for word in words]


def _refused(why: str, files: Sequence[Path]) -> ValueError:
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return ValueError(f"{why}: {', '.join(map(str, files[:5]))}{more}; rename them, or give a folder without them")
