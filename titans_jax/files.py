"""Atomic file writes: a reader sees the old file or the complete new file, even after a crash."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Target = str | os.PathLike[str]


def expand(path: Target) -> Path:
    """The path, with a home folder for ~ or ~USER. Raises ValueError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no home folder for ~; give a full path") from None


def check_folder(path: Target) -> None:
    """Raise ValueError unless `path` is a folder that can be written to, or can be made one."""
    folder = Path(path)
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"output folder {folder}: {there} is a file; give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"output folder {folder}: {there} cannot be written to; give another folder")


def check_file(path: Target) -> None:
    """Raise ValueError unless `path` is a file that can be written, or can be made one."""
    check_folder(Path(path).parent)
    if Path(path).is_dir():
        raise ValueError(f"output file {path}: it is a folder; give a file in it")


@contextlib.contextmanager
def replacing(path: Target) -> Iterator[BinaryIO]:
    """Open a temporary file; after the block it replaces `path`, unless the block raises.

    It makes the folder if there is none. After the block, the content and the rename are on disk.
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
        os.fsync(folder)  # the rename is stored in the folder
    finally:
        os.close(folder)


def write(path: Target, content: str | bytes | bytearray) -> None:
    """Write bytes, or text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Target, value: Any) -> None:
    """Write a value as indented JSON and a newline."""
    write(path, json.dumps(value, indent=2) + "\n")
