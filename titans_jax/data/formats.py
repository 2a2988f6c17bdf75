"""The documents in files: a text, WikiText's articles, the rows of JSON lines or of Parquet."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_PART = re.compile(r"(?:wiki\.)?(train|validation|valid|test)(?:-\d+-of-\d+)?\.(?:raw|tokens|txt|jsonl|parquet)")
# ` = Title = ` begins an article where blank lines stand around it; ` = = Section = = ` does not.
_TITLE = re.compile(r"\n = [^=\n][^\n]* = \n ?\n")
_BLANK = (" \n", "\n\n")


def part_of(path: Path) -> str | None:
    """The part in a file's name, "train", "valid" or "test", as WikiText and the hubs name them; None without one.

    >>> [part_of(Path(name)) for name in ("wiki.valid.raw", "train-00000-of-00002.parquet", "test.py")]
    ['valid', 'train', None]
    """
    match = _PART.fullmatch(path.name)
    return part_name(match[1]) if match else None


def part_name(name: str) -> str:
    """This library's name of a part: the validation part is "valid"."""
    return "valid" if name == "validation" else name


def documents(paths: Sequence[Path]) -> list[str]:
    """The documents of files, in order; files that are not UTF-8 text are ignored.

    `.parquet` and `.jsonl`: the column `text`, see `from_rows`. `.raw` and `.tokens`: `articles`. Every other file is
    one document.
    Raises ValueError: a table has no column `text`; pyarrow, which reads Parquet, is not installed.
    """
    found: list[str] = []
    for suffix, group in itertools.groupby(paths, key=lambda path: path.suffix):
        if suffix in (".parquet", ".jsonl"):
            read = _parquet if suffix == ".parquet" else _json_lines
            found += from_rows(itertools.chain.from_iterable(map(read, group)))
        else:
            texts = [text for path in group if (text := read_text(path)) is not None]
            found += itertools.chain.from_iterable(map(articles, texts)) if suffix in (".raw", ".tokens") else texts
    return found


def from_rows(rows: Iterable[str]) -> list[str]:
    """The documents of a table's rows: one each, except that WikiText's rows, which are lines, are joined to articles.

    >>> from_rows([" = One = \\n", "", " first \\n", "", " = Two = \\n", "", " second \\n"])
    [' = One = \\n \\n first \\n \\n', ' = Two = \\n \\n second \\n']
    """
    rows = list(rows)
    if any(row.startswith(" = ") and row.endswith(" = \n") for row in rows[:100]):
        return articles("".join(row or " \n" for row in rows))
    return rows


def articles(text: str) -> list[str]:
    """WikiText cut before each ` = Title = `; joined, the articles are the text.

    >>> articles(" \\n = One = \\n \\n first \\n = = Part = = \\n \\n more \\n \\n = Two = \\n \\n second \\n")
    [' \\n = One = \\n \\n first \\n = = Part = = \\n \\n more \\n \\n', ' = Two = \\n \\n second \\n']
    """
    titles = (match.start() + 1 for match in _TITLE.finditer(text))
    first = re.match(r"\s*", text).end()  # type: ignore[union-attr]  # it matches every text
    begins = [at for at in titles if at > first and text[at - 2 : at] in _BLANK]
    return [text[begin:end] for begin, end in itertools.pairwise([0, *begins, len(text)])]


def read_text(path: Path) -> str | None:
    """The text of a file, with its line ends; None if it is not UTF-8."""
    raw = path.read_bytes()
    if b"\0" in raw[:8192]:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _parquet(path: Path) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install 'titans-jax[hf]'") from None
    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise ValueError(f"{path}: it has no column 'text', only {', '.join(file.schema_arrow.names)}")
    for batch in file.iter_batches(columns=["text"]):
        yield from (text or "" for text in batch.column("text").to_pylist())


def _json_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, TypeError, KeyError):
                text = None
            if not isinstance(text, str):
                raise ValueError(f'{path}, line {number}: not an object such as {{"text": "..."}}')
            yield text
