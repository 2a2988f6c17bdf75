"""The tokens of a text of any size, a block at a time: no more of the text than a piece is ever in memory."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tokenizer import Tokenizer

PIECE = 1 << 16
"""Bytes that become tokens together."""


@dataclass(frozen=True)
class Place:
    """Where reading stands: `token` tokens into the piece that begins at byte `byte`; sha256 of all that was read."""

    byte: int = 0
    token: int = 0
    sha256: str = hashlib.sha256().hexdigest()


def token_blocks(
    file: BinaryIO, tokenizer: Tokenizer, size: int, place: Place | None = None, *, piece: int = PIECE
) -> Iterator[tuple[NDArray[np.int32], Place]]:
    """Yields the tokens of UTF-8 text in blocks of `size`, the last one perhaps shorter, each with the place after it.

    The file is given from its beginning; it need not be seekable, nor have an end. `place`, of an earlier block, is
    where to go on: what lies before is read again, to see that it is the same. A piece ends before a space that follows
    a letter, where it has one, so that words stay whole and their tokens are those of the whole text.

    Raises:
      ValueError: the text is not UTF-8, or it is another one before `place`.

    >>> import io
    >>> from titans_jax.data import BYTES
    >>> [block.tolist() for block, _ in token_blocks(io.BytesIO(b"abcde"), BYTES, 2)]
    [[97, 98], [99, 100], [101]]
    """
    goal = place or Place()
    parts: list[NDArray[np.int32]] = []
    missing, found = size, goal == Place()
    for byte, before, raw in _pieces(file, piece):
        if byte < goal.byte:
            continue
        ids = tokenizer.encode(_text(raw, byte))
        at = 0 if found else goal.token
        if not found and _place(byte, before, ids[:at]) != goal:
            break
        found = True
        while at < len(ids):
            parts.append(ids[at : at + missing])
            at, missing = at + len(parts[-1]), missing - len(parts[-1])
            if not missing:
                yield np.concatenate(parts), _place(byte, before, ids[:at])
                parts, missing = [], size
    if not found:
        raise ValueError(f"the text is not the one that was read up to byte {goal.byte:,} and {goal.token:,} tokens on")
    if parts:
        yield np.concatenate(parts), _place(byte, before, ids)


def _pieces(file: BinaryIO, size: int) -> Iterator[tuple[int, Any, bytes]]:
    """The bytes of a file in pieces of at most `size`, each with where it begins and the hash of all before."""
    byte, seen, held = 0, hashlib.sha256(), b""
    while held := held + file.read(size - len(held)):
        end = _cut(held) if len(held) == size else len(held)
        piece, held = held[:end], held[end:]
        yield byte, seen.copy(), piece
        seen.update(piece)
        byte += end


def _place(byte: int, before: Any, ids: NDArray[np.int32]) -> Place:
    seen = before.copy()
    seen.update(ids.tobytes())
    return Place(byte, len(ids), seen.hexdigest())


def _cut(raw: bytes) -> int:
    """Where a piece may end: before a space that follows what is none, or else before its last character."""
    at = raw.rfind(b" ")
    while at > 0 and raw[at - 1 : at].isspace():
        at = raw.rfind(b" ", 0, at)
    if at > 0:
        return at
    at = len(raw) - 1
    while at > 1 and raw[at] & 0xC0 == 0x80:  # inside a character
        at -= 1
    return at


def _text(raw: bytes, byte: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {byte + error.start:,}") from None
