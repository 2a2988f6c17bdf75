"""From documents to token ids on disk: the configuration, the held-out split, the cache.

The tokens of a set of documents are one stream, `sep d_1 sep d_2 ... sep d_n sep`. The separator before a document is
the input for its first token; the one after it is a target, so that the model learns where documents end. A stream of
N + 1 tokens has N targets: every token of every document and n ends.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.corpus import load_documents, load_parts
from titans_jax.data.tasks import check_task
from titans_jax.data.tokenizer import Tokenizer, check_ids, load_tokenizer
from titans_jax.files import expand, replacing, write_json
from titans_jax.nearest import require_known

Packing = Literal["stream", "documents"]
Split = Literal["tail", "documents", "test"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes batches.

    Attributes:
      corpus: "moby-dick", "python", the path of a text file or a folder, hf:NAME or tfds:NAME; see `corpus`.
      task: a made-up task in place of the corpus, see `tasks`; text tasks hide their facts in the corpus.
      facts: the share of rows of training text that tell a fact and mention it again, see `facts`; of rows that are
        one piece of text.
      tokenizer: "bytes", the path of a BPE tokenizer's JSON (see `train_bpe`), or a folder with GPT-2's vocabulary.
      sequence: targets per row.
      batch: rows per step, over all hosts.
      packing: "stream" cuts the stream every `sequence` tokens, also inside documents, and never resets.
        "documents" fills rows with whole documents (longer ones are cut), and resets at the start of each.
      held_out: the fraction of the characters that training does not see; 0 holds out nothing.
      split: "tail" holds out the end of the corpus (it cuts a document at a line's end); "documents" holds out whole
        documents by the hash of their text, independent of their order. A corpus with a valid part, such as WikiText,
        trains on its train part, and all of valid is held out if held_out is not 0; "test" reads its test part in
        place of valid.
      align: in "documents", each starts at a multiple of it; with the memory's chunk, no chunk has two documents.
      workers: processes that load data; 0 loads in this one.
      cache_dir: folder for tokens; None is ~/.cache/titans_jax (a folder below the system's temporary one if that
        cannot be written).

    Raises ValueError: a value is out of its range.
    """

    corpus: str = "moby-dick"
    task: str = ""
    facts: float = 0.0
    tokenizer: str = "bytes"
    sequence: int = 512
    batch: int = 8
    packing: Packing = "stream"
    held_out: float = 0.05
    split: Split = "tail"
    align: int = 1
    workers: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.task:
            check_task(self.task)
        for name, choices in (("packing", get_args(Packing)), ("split", get_args(Split))):
            require_known(f"data.{name}", getattr(self, name), choices)
        for name, least in (("sequence", 1), ("batch", 1), ("align", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least {least}")
        if not 0 <= self.facts <= 1:
            raise ValueError(f"data.facts={self.facts} must be a share, from 0 to 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out={self.held_out} must be in [0, 1)")
        if self.packing == "documents" and self.sequence % self.align:
            raise ValueError(f"data.sequence={self.sequence} must be a multiple of data.align={self.align}")


class TokenStream:
    """A stream of token ids on disk, read through a memory map; a pickle has only its path, so processes share pages.

    Attributes:
      tokens: uint16 or uint32 [N + 1].
      starts: int64 [n + 1], where the separators are; document i is tokens[starts[i] : starts[i + 1] + 1].
      separator: the id of the separator.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path` + ".tokens.npy" and its ".starts.npy", as `tokenise` wrote them."""
        self.path = path
        self.tokens: NDArray[np.integer] = np.load(f"{path}.tokens.npy", mmap_mode="r")
        self.starts: NDArray[np.int64] = np.load(f"{path}.starts.npy")
        self.separator = int(self.tokens[0])

    def __reduce__(self) -> tuple[type["TokenStream"], tuple[Path]]:
        return TokenStream, (self.path,)


def split_documents(documents: Sequence[str], held_out: float, split: Split = "tail") -> tuple[list[str], list[str]]:
    """Splits documents into those to train on and those held out; together they have each character once.

    Args:
      documents: the corpus, no document empty.
      held_out: fraction of the characters to hold out, in [0, 1); 0 holds out nothing.
      split: as in `DataConfig`.

    Raises ValueError: a side would be empty.

    >>> split_documents(["one\\ntwo\\n", "six\\n"], 0.6)
    (['one\\n'], ['two\\n', 'six\\n'])
    """
    if not held_out:
        return list(documents), []
    wanted = round(held_out * sum(map(len, documents)))
    train, test = _split_tail(documents, wanted) if split == "tail" else _split_hashed(documents, wanted)
    if not train or not test:
        side = "held-out" if not test else "training"
        raise ValueError(f"held_out={held_out}, split={split!r}: {len(documents)} documents leave no {side} text")
    return train, test


def _split_tail(documents: Sequence[str], wanted: int) -> tuple[list[str], list[str]]:
    tail: list[str] = []
    for index in range(len(documents) - 1, -1, -1):
        document = documents[index]
        if len(document) > wanted:
            exact = len(document) - wanted
            cut = document.rfind("\n", max(0, exact - wanted // 2 - 1), exact) + 1 or exact
            parts = document[:cut], document[cut:]
            return [*documents[:index], parts[0]], [part for part in (parts[1], *tail) if part]
        tail.insert(0, document)
        wanted -= len(document)
    return [], tail


def _split_hashed(documents: Sequence[str], wanted: int) -> tuple[list[str], list[str]]:
    order = sorted(range(len(documents)), key=lambda index: hashlib.sha256(documents[index].encode()).digest())
    before = np.cumsum([0, *(len(documents[index]) for index in order)])[:-1]
    chosen = {index for index, start in zip(order, before, strict=True) if start < wanted}
    train = [document for index, document in enumerate(documents) if index not in chosen]
    return train, [documents[index] for index in sorted(chosen)]


def load_streams(config: DataConfig) -> tuple[TokenStream, TokenStream | None, Tokenizer]:
    """Returns the training stream, the held-out stream (None for held_out = 0) and the tokenizer; cached on disk.

    Raises ValueError: the corpus or the tokenizer is unknown or empty, the split leaves one side empty, or it is "test"
    and the corpus has no test part.
    """
    tokenizer, cache = load_tokenizer(config.tokenizer), cache_folder(config.cache_dir)
    train, test = load_sides(config)
    return tokenise(train, tokenizer, cache), tokenise(test, tokenizer, cache) if test else None, tokenizer


def content(config: DataConfig) -> dict[str, str]:
    """Returns what names do not say: digests of the text to train on, of the held-out text, and of the tokenizer.

    Raises ValueError as `load_streams`.
    """
    train, held_out = (_sha256(side).hexdigest()[:16] for side in load_sides(config))
    return {"training text": train, "held-out text": held_out, "tokenizer": load_tokenizer(config.tokenizer).name}


def load_sides(config: DataConfig) -> tuple[list[str], list[str]]:
    """Returns the documents to train on, and those held out; raises ValueError as `load_streams`."""
    train, own = load_documents(config.corpus), _own_part(config)
    if own is None:
        return split_documents(train, config.held_out, config.split)
    return train, load_documents(config.corpus, own)


def held_out_stream(config: DataConfig) -> TokenStream | None:
    """Returns the held-out stream of `load_streams`; a corpus with a held-out part is not read further."""
    if (own := _own_part(config)) is None:
        return load_streams(config)[1]
    documents = load_documents(config.corpus, own)
    return tokenise(documents, load_tokenizer(config.tokenizer), cache_folder(config.cache_dir))


def _own_part(config: DataConfig) -> str | None:
    """The corpus' own held-out part; None if it has none, or nothing is held out."""
    if config.split == "test":
        return "test"
    return "valid" if config.held_out and "valid" in load_parts(config.corpus) else None


def tokenise(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    cache_dir: str | os.PathLike[str],
    *,
    on_documents: Callable[[int], object] = lambda count: None,
) -> TokenStream:
    """Returns the token stream of documents, from the cache if it is there.

    The files' name is the hash of the text and the tokenizer. Each is written in one step, so many processes may ask at
    once, and a killed one leaves no partial file. Their CRC-32 stands beside them; files that differ from it are logged
    as damaged, and made again. `on_documents` is called with the number of newly tokenised documents.
    Raises ValueError: there is no document, or the tokenizer made an id outside its vocabulary.
    """
    if not documents:
        raise ValueError("no documents to tokenise")
    path = Path(cache_dir, _key(documents, tokenizer))
    try:
        if json.loads(Path(f"{path}.crc32.json").read_text(encoding="utf-8")) != _checksums(path):
            raise ValueError("it is not what was written")
    except FileNotFoundError:
        _write(path, documents, tokenizer, on_documents)
    except (OSError, ValueError) as error:
        _log.warning("cached tokens %s are damaged and made again: %s", path, error)
        _write(path, documents, tokenizer, on_documents)
    return TokenStream(path)


def _key(documents: Sequence[str], tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name}-{_sha256(documents, b'titans_jax stream 1').hexdigest()[:32]}"


def _sha256(documents: Sequence[str], first: bytes = b"") -> Any:
    digest = hashlib.sha256(first)
    for document in documents:
        raw = document.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest


def _write(path: Path, documents: Sequence[str], tokenizer: Tokenizer, on_documents: Callable[[int], object]) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    separator = np.asarray([tokenizer.separator], dtype)
    pieces, starts = [separator], [0]
    for begin in range(0, len(documents), 256):
        some = tokenizer.encode_batch(documents[begin : begin + 256])
        for ids in some:
            pieces += [check_ids(ids, tokenizer.vocab_size).astype(dtype), separator]
            starts.append(starts[-1] + len(ids) + 1)
        on_documents(len(some))
    _replace(Path(f"{path}.starts.npy"), np.asarray(starts, np.int64))
    _replace(Path(f"{path}.tokens.npy"), np.concatenate(pieces))
    write_json(f"{path}.crc32.json", _checksums(path))  # last: without it, the others are made again


def _checksums(path: Path) -> dict[str, int]:
    """The CRC-32 of both files."""
    names = f"{path}.starts.npy", f"{path}.tokens.npy"
    return {Path(name).name: zlib.crc32(np.memmap(name, np.uint8, "r").data) for name in names}


def _replace(path: Path, array: NDArray) -> None:
    with replacing(path) as file:
        np.save(file, array)


def cache_folder(cache_dir: str | None) -> Path:
    """Returns the folder for tokens that `DataConfig.cache_dir` means."""
    if cache_dir is not None:
        return expand(cache_dir)
    with contextlib.suppress(OSError, RuntimeError):  # there may be no home folder
        folder = Path.home() / ".cache" / "titans_jax"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir(), f"titans_jax-{os.getuid()}")
