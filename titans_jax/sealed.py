"""Files that others wrote: JSON that carries its own digest, and folders in which nothing is but files.

Nothing is opened that is a link, a device or a pipe, and no JSON is read that is larger than `MOST`.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titans_jax import files

MOST = 1 << 26
"""The largest JSON that is read, in bytes."""


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object, and the sha256 of what else it holds as "seal"."""
    plain = json.loads(json.dumps(dict(record)))
    files.write_json(path, plain | {"seal": _seal(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote. Raises OSError, or ValueError where it is something else."""
    if regular(path) > MOST:
        raise ValueError(f"{path.name} has more than {MOST:,} bytes")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "seal" not in record:
            raise ValueError(f"{path.name} has no seal; it is not of this version, or was changed")
        if record.pop("seal") != _seal(record):
            raise ValueError(f"{path.name} is not what was written: its seal is not the sha256 of the rest")
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    return record


def regular(path: Path) -> int:
    """The size of a file. Raises OSError where there is none, ValueError for a link, a folder, a device or a pipe."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return found.st_size


def digest(path: Path) -> str:
    """The sha256 of a file. Raises as `regular`."""
    regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of all files in a folder and its folders, by relative path. Raises as `regular`."""
    found = {}
    if folder.is_symlink():
        raise ValueError(f"{folder.name} is a link")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            found[path.relative_to(folder).as_posix()] = digest(path)
    return found


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
