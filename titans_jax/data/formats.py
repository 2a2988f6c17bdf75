"""The documents in files: a text, WikiText's articles, the rows of JSON lines or of Parquet."""

import contextlib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

ENDING = re.compile(r"(\.(?:txt|raw|tokens|jsonl|ndjson|parquet))(\.gz)?$", re.IGNORECASE)
"""The endings of text and tables, and whether they are packed."""
# ` = Title = ` begins an article where blank lines stand around it; ` = = Section = = ` does not.
_TITLE = re.compile(r"(?:(?<=[ \n])|(?<=[ \n]\r))\n = [^=\r\n][^\r\n]* = \r?\n ?\r?\n")


def documents(paths: Sequence[Path]) -> list[str]:
    """The documents of files, in order; files that are not UTF-8 text are ignored.

    By the ending, in any case and perhaps with `.gz` behind it: `.parquet`, `.jsonl` and `.ndjson` are tables with a
    column `text`, see `from_rows`; `.raw` and `.tokens`, see `articles`. Every other file is one document.
    Raises ValueError, which says where: a table's cell is not text; a file is damaged; pyarrow, which reads Parquet, is
    not installed.
    """
    found: list[str] = []
    for ending, group in itertools.groupby(paths, key=_ending):
        if ending in _TABLES:
            found += from_rows(itertools.chain.from_iterable(map(_TABLES[ending], group)))
        else:
            texts = [text for path in group if (text := _text(path)) is not None]
            found += itertools.chain.from_iterable(map(articles, texts)) if ending in (".raw", ".tokens") else texts
    return found


def from_rows(rows: Iterable[str]) -> list[str]:
    """The documents of a table's rows: one each, except that WikiText's rows, which are lines, are joined to articles.

    >>> from_rows([" = One = \\n", "", " first \\n", "", " = Two = \\n", "", " second \\n"])
    [' = One = \\n \\n first \\n \\n', ' = Two = \\n \\n second \\n']
    """
    rows = list(rows)
    if any(re.fullmatch(r" = .* = \r?\n", row) for row in rows[:100]):
        return articles("".join(row or " \n" for row in rows))
    return rows


def row_text(cell: object, table: str, number: int) -> str:
    """The text of a table's cell, a string or bytes; "" for null.

    Raises ValueError, which names the table and the number: it is something else, or not UTF-8.
    """
    try:
        text = cell.decode() if isinstance(cell, bytes) else "" if cell is None else cell
        if isinstance(text, str):
            text.encode()  # refuses half a surrogate pair, which JSON may hold
            return text
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{table} {number}: the text is not UTF-8: {error.reason}") from None
    raise ValueError(f"{table} {number}: the text is {type(cell).__name__}, not a string")


def articles(text: str) -> list[str]:
    """WikiText cut before each ` = Title = `; joined, the articles are the text.

    >>> articles(" \\n = One = \\n \\n first \\n = = Part = = \\n \\n more \\n \\n = Two = \\n \\n second \\n")
    [' \\n = One = \\n \\n first \\n = = Part = = \\n \\n more \\n \\n', ' = Two = \\n \\n second \\n']
    """
    first = re.match(r"\s*", text).end()  # type: ignore[union-attr]  # it matches every text
    begins = [match.start() + 1 for match in _TITLE.finditer(text) if match.start() >= first]
    return [text[begin:end] for begin, end in itertools.pairwise([0, *begins, len(text)])]


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: not where Python made an argument's other bytes surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_text(path: Path) -> str:
    """The text of a file, with its line ends and without a byte order mark. Raises ValueError if it is not UTF-8."""
    try:
        return _bytes(path).decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start:,}") from None


def _text(path: Path) -> str | None:
    """The text of a file; None if it is not UTF-8."""
    raw = _bytes(path)
    if b"\0" in raw[:8192]:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        return raw.decode().removeprefix("\ufeff")
    return None


def _ending(path: Path) -> str:
    match = ENDING.search(path.name)
    return match[1].lower() if match else ""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The bytes of a file, unpacked where the ending says so. Raises ValueError if it is damaged."""
    match = ENDING.search(path.name)
    try:
        with gzip.open(path, "rb") if match and match[2] else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from None


def _bytes(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install 'titans-jax[hf]'") from None
    try:
        file = parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise ValueError(f"{path}: it has no column 'text', only {', '.join(file.schema_arrow.names)}")
        columns = (batch.column("text") for batch in file.iter_batches(columns=["text"]))
        strings = pyarrow.string(), pyarrow.large_string()  # may hold what is not UTF-8: decoded here, row by row
        columns = (column.cast(pyarrow.large_binary()) if column.type in strings else column for column in columns)
        cells = itertools.chain.from_iterable(column.to_pylist() for column in columns)
        where = f"{path}, row"
        yield from (row_text(cell, where, number) for number, cell in enumerate(cells, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: {next(iter(str(error).splitlines()), type(error).__name__)}") from None


def _json_lines(path: Path) -> Iterator[str]:
    where = f"{path}, line"
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            text = row_text(line, where, number).removeprefix("\ufeff" if number == 1 else "")
            if not text.strip():
                continue
            try:
                cell = json.loads(text)["text"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise ValueError(f'{where} {number}: not an object such as {{"text": "..."}}') from None
            yield row_text(cell, where, number)


_TABLES = {".parquet": _parquet, ".jsonl": _json_lines, ".ndjson": _json_lines}
