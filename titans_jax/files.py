"""Atomic file writes: a reader sees the old file or the complete new one, even after a crash."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Target = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Target) -> Iterator[BinaryIO]:
    """Opens a file that becomes `path` when the block succeeds. If the block raises, nothing is left.

    The folder is made if it does not exist. The content and the rename are on disk when the block has ended.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename is an entry of the folder
    finally:
        os.close(folder)


def write(path: Target, content: str | bytes | bytearray) -> None:
    """Writes bytes, or a text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Target, value: Any) -> None:
    """Writes a value as indented JSON and a newline."""
    write(path, json.dumps(value, indent=2) + "\n")
