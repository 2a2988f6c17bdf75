"""Token streams on disk: written a piece at a time, read through a memory map.

The tokens of a set of documents are one stream, `sep d_1 sep d_2 ... sep d_n sep`. The separator before a document is
the input for its first token; the one after it is a target, so that the model learns where documents end. A stream of
N + 1 tokens has N targets: every token of every document and n ends.

A stream is a folder: `tokens.bin`, `starts.bin`, and the sealed record `stream.json`, which is written last.
"""

import contextlib
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tokenizer import Tokenizer, check_ids
from titans_jax.files import naming
from titans_jax.sealed import read_sealed, regular, write_sealed

RECORD, _UNFINISHED = "stream.json", "unfinished.json"
_TOKENS, _STARTS = "tokens.bin", "starts.bin"
_VERSION = 1
DOCUMENTS, CHARACTERS = 256, 1 << 20
"""Of a piece: the most documents, and the characters that end it."""
SAVED = 1 << 24
"""Tokens between two records of an unfinished stream."""


class TokenStream:
    """A stream of token ids on disk; a pickle has only its path, so processes share pages.

    Attributes:
      path: its folder.
      record: what `stream.json` says: documents, bytes of UTF-8, tokens, text (`text_digest`), tokenizer, ...
      tokens: uint16 or uint32 [N + 1].
      starts: int64 [n + 1], where the separators are; document i is tokens[starts[i] : starts[i + 1] + 1].
      separator: the id of the separator.
    """

    def __init__(self, path: Path) -> None:
        """Opens a finished stream. Raises OSError, ValueError: its record is damaged, or a file has another size."""
        self.path, self.record = path, _read(path / RECORD)
        self.tokens: NDArray[np.integer] = _mapped(path / _TOKENS, self.record["dtype"], self.record["tokens"])
        self.starts: NDArray[np.int64] = _mapped(path / _STARTS, "int64", self.record["documents"] + 1)
        self.separator = int(self.tokens[0])

    def __reduce__(self) -> tuple[type["TokenStream"], tuple[Path]]:
        return TokenStream, (self.path,)

    def check(self) -> None:
        """Read all of both files. Raises ValueError: one is not what was written."""
        for name, array in ((_TOKENS, self.tokens), (_STARTS, self.starts)):
            if zlib.crc32(array.view(np.uint8).data) != self.record["crc32"][name]:
                raise ValueError(f"{self.path / name} is not what was written: its CRC-32 differs")

    def documents(self, tokenizer: Tokenizer) -> list[str]:
        """The text of each document."""
        return [tokenizer.decode(self.tokens[a + 1 : b]) for a, b in itertools.pairwise(self.starts.tolist())]


def text_digest(documents: Iterable[str]) -> str:
    """The sha256 of documents, with the length of each."""
    digest = hashlib.sha256()
    for document in documents:
        _add(digest, document)
    return digest.hexdigest()


def write_stream(
    path: Path,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    on_documents: Callable[[int], object] = lambda count: None,
) -> TokenStream:
    """Writes the stream of documents to a folder, in the memory of one piece of the text, however long it is.

    An unfinished stream, as after SIGKILL, goes on behind what it has, and its files become the same, byte for byte. A
    finished one is compared with the text. `on_documents` is called with the number of documents of each piece.
    Raises ValueError: there is no document; the tokenizer made an id outside its vocabulary; the folder has a stream of
    another text or tokenizer, or a damaged one.
    """
    record, finished = _record(path, tokenizer)
    other = ValueError(f"{path} has tokens of another text or tokenizer; give another folder, or remove it")
    if record["tokenizer"] != tokenizer.name:
        raise other
    text, read = hashlib.sha256(), 0
    with contextlib.ExitStack() as files:
        writer = None if finished else _Writer(path, record, tokenizer, files)
        for piece in _pieces(documents):
            size = sum(_add(text, document) for document in piece)
            read += len(piece)
            if writer and read > record["documents"]:
                writer.add(piece, size, text.hexdigest())
            elif read == record["documents"] and text.hexdigest() != record["text"]:
                raise other
            on_documents(len(piece))
        if not read:
            raise ValueError("no documents to tokenise")
        if read != record["documents"]:
            raise other
        if writer:
            writer.save(RECORD)
    (path / _UNFINISHED).unlink(missing_ok=True)
    stream = TokenStream(path)
    if finished:
        stream.check()
    return stream


class _Writer:
    """The files of an unfinished stream, and its record."""

    def __init__(self, path: Path, record: dict[str, Any], tokenizer: Tokenizer, files: contextlib.ExitStack) -> None:
        """Opens the files behind what the record says that they have."""
        self.path, self.record, self.tokenizer, self.saved = path, record, tokenizer, record["tokens"]
        self.dtype = np.dtype(record["dtype"])
        starts = record["documents"] + 1 if record["tokens"] else 0
        sizes = {_TOKENS: self.dtype.itemsize * record["tokens"], _STARTS: 8 * starts}
        self.files = {name: files.enter_context(_behind(path / name, size)) for name, size in sizes.items()}

    def add(self, documents: Sequence[str], size: int, text: str) -> None:
        """Tokenise and write documents. size: their bytes. text: the digest of all up to the last of them."""
        separator = np.asarray([self.tokenizer.separator], self.dtype)
        ids = [check_ids(each, self.tokenizer.vocab_size) for each in self.tokenizer.encode_batch(documents)]
        tokens = [part for each in ids for part in (each.astype(self.dtype), separator)]
        starts = self.record["tokens"] - 1 + np.cumsum([len(each) + 1 for each in ids])
        if not self.record["tokens"]:
            tokens, starts = [separator, *tokens], np.append(0, starts + 1)
        self._append(_TOKENS, np.concatenate(tokens))
        self._append(_STARTS, starts.astype(np.int64))
        self.record["tokens"] += sum(map(len, tokens))
        self.record["documents"] += len(documents)
        self.record["bytes"] += size
        self.record["text"] = text
        if self.record["tokens"] - self.saved >= SAVED:
            self.save(_UNFINISHED)

    def save(self, name: str) -> None:
        """Write the record, once what it tells of is on disk."""
        for file in self.files.values():
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())
        write_sealed(self.path / name, self.record)
        self.saved = self.record["tokens"]

    def _append(self, name: str, array: NDArray) -> None:
        with naming(self.path / name):
            self.files[name].write(array.data)
        self.record["crc32"][name] = zlib.crc32(array.data, self.record["crc32"][name])


def _record(path: Path, tokenizer: Tokenizer) -> tuple[dict[str, Any], bool]:
    """The record of a stream that is there, or of an empty one, and whether it is finished."""
    path.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, _UNFINISHED):
        try:
            return _read(path / name), name == RECORD
        except FileNotFoundError:
            continue
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    counts: dict[str, Any] = dict.fromkeys(("documents", "bytes", "tokens"), 0)
    digests = {"text": text_digest([]), "crc32": {_TOKENS: 0, _STARTS: 0}}
    return {"version": _VERSION, "tokenizer": tokenizer.name, "dtype": dtype} | counts | digests, False


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_sealed(path)
    except ValueError as error:
        raise ValueError(f"{path.parent}: {error}") from None
    if record.get("version") != _VERSION:
        raise ValueError(f"{path} has version {record.get('version')}; this is version {_VERSION}: make it again")
    counts = [record.get(name) for name in ("documents", "bytes", "tokens")]
    checked = isinstance(record.get("crc32"), dict) and record["crc32"].keys() == {_TOKENS, _STARTS}
    named = all(isinstance(record.get(name), str) for name in ("text", "tokenizer"))
    if not (checked and named and all(type(count) is int and count >= 0 for count in counts)):
        raise ValueError(f"{path} is no record of a token stream")
    if record.get("dtype") not in ("uint16", "uint32"):
        raise ValueError(f"{path} has the dtype {record.get('dtype')!r}; it must be uint16 or uint32")
    return record


@contextlib.contextmanager
def _behind(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a file behind its first `size` bytes, and drop the others. Raises ValueError: it has fewer."""
    path.touch()
    with open(path, "r+b") as file:
        if file.seek(0, os.SEEK_END) < size:
            raise ValueError(f"{path} has fewer than the {size:,} bytes of its record; remove {path.parent}")
        file.truncate(size)
        file.seek(size)
        yield file


def _mapped(path: Path, dtype: str, length: int) -> NDArray:
    """An array on disk. Raises OSError, ValueError: it has another size."""
    size = np.dtype(dtype).itemsize * length
    if regular(path) != size:
        raise ValueError(f"{path} has {regular(path):,} bytes, not {size:,}")
    return np.memmap(path, dtype, "r", shape=(length,))


def _pieces(documents: Iterable[str]) -> Iterator[list[str]]:
    """The documents in lists of at most DOCUMENTS; one ends behind the document that reaches CHARACTERS."""
    piece: list[str] = []
    size = 0
    for document in documents:
        piece.append(document)
        size += len(document)
        if len(piece) == DOCUMENTS or size >= CHARACTERS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _add(digest: Any, document: str) -> int:
    """Add a document to a digest; returns its bytes of UTF-8."""
    raw = document.encode()
    digest.update(len(raw).to_bytes(8, "little"))
    digest.update(raw)
    return len(raw)
