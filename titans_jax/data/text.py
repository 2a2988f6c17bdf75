"""From documents to token streams: the configuration, the held-out split, the cache, prepared corpora."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from titans_jax.data.corpus import PREPARED, is_prepared, load_documents, load_parts, provenance
from titans_jax.data.streams import TokenStream, text_digest, write_stream
from titans_jax.data.tasks import check_task
from titans_jax.data.tokenizer import Tokenizer, load_tokenizer
from titans_jax.files import expand, locked, remove
from titans_jax.nearest import require_known
from titans_jax.sealed import write_sealed

Packing = Literal["stream", "documents"]
Split = Literal["tail", "documents", "test"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes batches.

    Attributes:
      corpus: "moby-dick", "python", the path of a text file or a folder, hf:NAME or tfds:NAME; see `corpus`. A folder
        that `prepare` wrote has tokens in place of text.
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

    Of a prepared corpus, streams are opened and no text is read.
    Raises ValueError: the corpus or the tokenizer is unknown or empty, the split leaves one side empty, or it is "test"
    and the corpus has no test part; a corpus that was prepared with another tokenizer.
    """
    tokenizer, cache = load_tokenizer(config.tokenizer), cache_folder(config.cache_dir)
    if is_prepared(config.corpus):
        own = _own_part(config)
        return _prepared(config, "train", tokenizer), _prepared(config, own, tokenizer) if own else None, tokenizer
    train, test = load_sides(config)
    return tokenise(train, tokenizer, cache), tokenise(test, tokenizer, cache) if test else None, tokenizer


def prepare(
    config: DataConfig, folder: Path, on_documents: Callable[[int], object] = lambda count: None
) -> dict[str, TokenStream]:
    """Writes a corpus' token streams to a folder, which is then a corpus itself; returns them by part.

    The parts are "train", "valid" where text is held out, and "test" where the corpus has one. A preparation that was
    stopped goes on where it was.
    Raises ValueError: as `load_streams` and `write_stream`; the folder is in use.
    """
    if is_prepared(config.corpus):
        raise ValueError(f"corpus {config.corpus!r} is prepared")
    tokenizer, found = load_tokenizer(config.tokenizer), {}
    train, valid = load_sides(config)
    sides = {"train": train, "valid": valid}
    if "test" in load_parts(config.corpus):
        sides["test"] = load_documents(config.corpus, "test")
    with locked(folder):
        if not (folder / PREPARED).exists():
            write_sealed(folder / PREPARED, {"parts": []})
        for part, documents in sides.items():
            if documents:
                found[part] = write_stream(folder / part, documents, tokenizer, on_documents)
        write_sealed(folder / PREPARED, {"parts": list(found)} | provenance(config.corpus))
    return found


def content(config: DataConfig) -> dict[str, str]:
    """Returns what names do not say: digests of the text to train on, of the held-out text, and of the tokenizer.

    Raises ValueError as `load_streams`.
    """
    if is_prepared(config.corpus):
        train, held_out, tokenizer = load_streams(config)
        digests = train.record["text"], held_out.record["text"] if held_out else text_digest([])
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        digests = text_digest((sides := load_sides(config))[0]), text_digest(sides[1])
    return {"training text": digests[0][:16], "held-out text": digests[1][:16], "tokenizer": tokenizer.name}


def load_sides(config: DataConfig) -> tuple[list[str], list[str]]:
    """Returns the documents to train on, and those held out; raises ValueError as `load_streams`."""
    train, own = load_documents(config.corpus), _own_part(config)
    if own is None:
        return split_documents(train, config.held_out, config.split)
    return train, load_documents(config.corpus, own)


def held_out_documents(config: DataConfig) -> list[str]:
    """Returns the documents held out; of a prepared corpus, its tokens as text. Raises ValueError as `load_streams`."""
    if not is_prepared(config.corpus):
        return load_sides(config)[1]
    _, stream, tokenizer = load_streams(config)
    return stream.documents(tokenizer) if stream else []


def held_out_stream(config: DataConfig) -> TokenStream | None:
    """Returns the held-out stream of `load_streams`; a corpus with a held-out part is not read further."""
    if (own := _own_part(config)) is None or is_prepared(config.corpus):
        return load_streams(config)[1]
    documents = load_documents(config.corpus, own)
    return tokenise(documents, load_tokenizer(config.tokenizer), cache_folder(config.cache_dir))


def prepared_streams(corpus: str) -> dict[str, TokenStream]:
    """Returns the streams of a prepared corpus by part. Raises ValueError: one is damaged or not there."""
    try:
        return {part: TokenStream(expand(corpus) / part) for part in load_parts(corpus)}
    except OSError as error:
        raise ValueError(f"corpus {corpus!r}: {error.filename}: {error.strerror}") from None


def _own_part(config: DataConfig) -> str | None:
    """The corpus' own held-out part; None if it has none, or nothing is held out."""
    if config.split == "test":
        return "test"
    return "valid" if config.held_out and "valid" in load_parts(config.corpus) else None


def _prepared(config: DataConfig, part: str, tokenizer: Tokenizer) -> TokenStream:
    """A part of a prepared corpus. Raises ValueError: as `prepared_streams`; no such part, or another tokenizer."""
    there = prepared_streams(config.corpus)
    if part not in there:
        raise ValueError(f"corpus {config.corpus!r}: it has no part {part!r}, only {', '.join(there)}")
    stream = there[part]
    if (made := stream.record["tokenizer"]) != tokenizer.name:
        raise ValueError(
            f"corpus {config.corpus!r} was prepared with the tokenizer {made}; data.tokenizer is {tokenizer.name}"
        )
    return stream


def tokenise(documents: Sequence[str], tokenizer: Tokenizer, cache_dir: str | os.PathLike[str]) -> TokenStream:
    """Returns the token stream of documents, from the cache if it is there.

    Its name is the hash of the text and the tokenizer. It is moved there in one step, so many processes may ask at
    once, and a killed one leaves none. It is read whole; one that is damaged is logged as such, and made again.
    Raises ValueError: there is no document, or the tokenizer made an id outside its vocabulary.
    """
    path = Path(cache_dir, f"{tokenizer.name}-{text_digest(documents)[:32]}")
    if path.exists():
        try:
            stream = TokenStream(path)
            stream.check()
            return stream
        except (OSError, ValueError) as error:
            _log.warning("cached tokens %s are damaged and made again: %s", path, error)
            remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        write_stream(Path(folder, path.name), documents, tokenizer)
        try:
            os.rename(Path(folder, path.name), path)
        except OSError:  # another process was first, with the same bytes
            if not path.is_dir():
                raise
    return TokenStream(path)


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
