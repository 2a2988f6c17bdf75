"""Atomic file writes: a reader sees the old file or the complete new file, even after a crash. Locks of folders."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Target = str | os.PathLike[str]

_log = logging.getLogger(__name__)


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
def locked(folder: Target) -> Iterator[None]:
    """Hold the lock of a folder, which is made if there is none; the kernel releases it when the process ends.

    It keeps writers apart; readers need none. Raises ValueError, which says who holds it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            raise ValueError(f"{folder} is in use by {owner}; end that first, or give another folder") from None
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def remove(folder: Target) -> None:
    """Remove a folder if it is there. Of a link to a folder, only the link is removed. Raises OSError."""
    path = Path(folder)
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def naming(path: Target) -> Iterator[None]:
    """Give an OSError of the block that names no file the name `path`, as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing(path: Target) -> Iterator[BinaryIO]:
    """Open a temporary file; after the block it replaces `path`, unless the block raises.

    It makes the folder if there is none. After the block, the content and the rename are on disk.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with naming(target), open(part, "xb") as file:
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
