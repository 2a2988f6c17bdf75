"""The tokens of a text of any size, block by block; only one piece of the text is in memory at a time."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.tokenizer import Tokenizer

PIECE = 1 << 16
"""Bytes that are tokenised together."""


@dataclass(frozen=True)
class Position:
    """A position in a text: `token` tokens into the piece at byte `byte`, and the sha256 of everything before it."""

    byte: int = 0
    token: int = 0
    sha256: str = hashlib.sha256().hexdigest()


def token_blocks(
    file: BinaryIO, tokenizer: Tokenizer, size: int, position: Position | None = None, *, piece: int = PIECE
) -> Iterator[tuple[NDArray[np.int32], Position]]:
    """Yields the tokens of UTF-8 text in blocks of `size` (the last may be shorter), each with the position after it.

    A piece ends before a space that follows a letter, if it has one: words stay whole, and the tokens are those of the
    whole text.

    Args:
      file: opened at its beginning; it need not be seekable, nor have an end.
      position: of an earlier block, to continue after it. The text before it is read again and compared.

    Raises ValueError: the text is not UTF-8, or differs before `position`.

    >>> import io
    >>> from titans_jax.data import BYTES
    >>> [block.tolist() for block, _ in token_blocks(io.BytesIO(b"abcde"), BYTES, 2)]
    [[97, 98], [99, 100], [101]]
    """
    goal = position or Position()
    parts: list[NDArray[np.int32]] = []
    missing, reached = size, goal == Position()
    for byte, before, raw in _pieces(file, piece):
        if byte < goal.byte:
            continue
        ids = tokenizer.encode(_text(raw, byte))
        at = 0 if reached else goal.token
        if not reached and _position(byte, before, ids[:at]) != goal:
            break
        reached = True
        while at < len(ids):
            parts.append(ids[at : at + missing])
            at, missing = at + len(parts[-1]), missing - len(parts[-1])
            if not missing:
                yield np.concatenate(parts), _position(byte, before, ids[:at])
                parts, missing = [], size
    if not reached:
        raise ValueError(
            f"the text differs from the one that was read, before byte {goal.byte:,} and {goal.token:,} tokens"
        )
    if parts:
        yield np.concatenate(parts), _position(byte, before, ids)


def _pieces(file: BinaryIO, size: int) -> Iterator[tuple[int, Any, bytes]]:
    """The bytes of a file in pieces of at most `size`, each with its first byte and the hash of everything before."""
    byte, digest, buffer = 0, hashlib.sha256(), b""
    while buffer := buffer + file.read(size - len(buffer)):
        end = _cut(buffer) if len(buffer) == size else len(buffer)
        piece, buffer = buffer[:end], buffer[end:]
        yield byte, digest.copy(), piece
        digest.update(piece)
        byte += end


def _position(byte: int, before: Any, ids: NDArray[np.int32]) -> Position:
    digest = before.copy()
    digest.update(ids.tobytes())
    return Position(byte, len(ids), digest.hexdigest())


def _cut(raw: bytes) -> int:
    """Where a piece may end: before a space that follows another character, otherwise before the last character."""
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
        return raw.decode().removeprefix("" if byte else "\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {byte + error.start:,}") from None
