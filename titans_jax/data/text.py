"""From documents to token ids on disk: the configuration, the held-out split, the cache.

The tokens of a set of documents are one stream, `sep d_1 sep d_2 ... sep d_n sep`: a separator begins every document,
so its first token has something to be predicted from, and ends it, so its end is predicted too. A stream of N + 1
tokens has N targets: every token of every document and n ends.
"""

import contextlib
import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from titans_jax.data.corpus import load_documents, load_parts
from titans_jax.data.tasks import known_task
from titans_jax.data.tokenizer import Tokenizer, check_ids, load_tokenizer
from titans_jax.files import replacing

Packing = Literal["stream", "documents"]
Split = Literal["tail", "documents", "test"]


@dataclass(frozen=True)
class DataConfig:
    """Which text, in which shape.

    Attributes:
      corpus: "moby-dick", "python", the path of a text file or a folder, hf:NAME or tfds:NAME; see `corpus`.
      task: a made-up task to read instead of the corpus, see `tasks`; the corpus is then what things are hidden in.
      tokenizer: "bytes", the path of a BPE tokenizer's JSON (see `train_bpe`), or a folder with GPT-2's vocabulary.
      sequence: targets a row.
      batch: rows a step, over all hosts.
      packing: "stream" cuts the stream every `sequence` tokens and never resets: what a row starts with may be the
        middle of a document, and documents follow one another with a separator between. "documents" fills rows with
        whole documents (longer ones are cut), resets at each and aligns it.
      held_out: the fraction of the characters that is kept from training; 0 keeps nothing.
      split: "tail" holds out the end of the corpus (cutting a document at a line's end); "documents" holds out whole
        documents, chosen by the hash of their text, so that order and neighbours do not matter. A corpus that comes
        with a valid part, such as WikiText, is trained on its train part and held_out, if not 0, is all of valid; its
        test part is read with "test" alone, in place of valid.
      align: in "documents", each starts at a multiple of it: give the memory's chunk, and no chunk straddles two.
      workers: processes that load data; 0 loads in this one. An iterator's state is bound to the number.
      cache_dir: folder for tokens; None is ~/.cache/titans_jax (a folder below the system's temporary one if that
        cannot be written).

    Raises:
      ValueError: a value is out of its range.
    """

    corpus: str = "moby-dick"
    task: str = ""
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
            known_task(self.task)
        _one_of("packing", self.packing, get_args(Packing))
        _one_of("split", self.split, get_args(Split))
        for name, least in (("sequence", 1), ("batch", 1), ("align", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least {least}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out={self.held_out} must be in [0, 1)")
        if self.packing == "documents" and self.sequence % self.align:
            raise ValueError(f"data.sequence={self.sequence} must be a multiple of data.align={self.align}")


class TokenStream:
    """A stream of token ids on disk, read through a memory map; pickled as its path, so processes share the pages.

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
    """Returns the documents to train on and those held out; together they are the text, each character once.

    Args:
      documents: the corpus, no document empty.
      held_out: fraction of the characters to hold out, in [0, 1); 0 holds out nothing.
      split: as in `DataConfig`.

    Raises:
      ValueError: a side would be empty.

    >>> split_documents(["one\\ntwo\\n", "six\\n"], 0.6)
    (['one\\n'], ['two\\n', 'six\\n'])
    """
    if not held_out:
        return list(documents), []
    wanted = round(held_out * sum(map(len, documents)))
    train, kept = _split_tail(documents, wanted) if split == "tail" else _split_hashed(documents, wanted)
    if not train or not kept:
        side = "held-out" if not kept else "training"
        raise ValueError(f"held_out={held_out}, split={split!r}: {len(documents)} documents leave no {side} text")
    return train, kept


def _split_tail(documents: Sequence[str], wanted: int) -> tuple[list[str], list[str]]:
    kept: list[str] = []
    for index in range(len(documents) - 1, -1, -1):
        document = documents[index]
        if len(document) > wanted:
            exact = len(document) - wanted
            cut = document.rfind("\n", max(0, exact - wanted // 2 - 1), exact) + 1 or exact
            parts = document[:cut], document[cut:]
            return [*documents[:index], parts[0]], [part for part in (parts[1], *kept) if part]
        kept.insert(0, document)
        wanted -= len(document)
    return [], kept


def _split_hashed(documents: Sequence[str], wanted: int) -> tuple[list[str], list[str]]:
    order = sorted(range(len(documents)), key=lambda index: hashlib.sha256(documents[index].encode()).digest())
    before = np.cumsum([0, *(len(documents[index]) for index in order)])[:-1]
    kept = {index for index, start in zip(order, before, strict=True) if start < wanted}
    sides = [index not in kept for index in range(len(documents))]
    return (
        [d for d, train in zip(documents, sides, strict=True) if train],
        [d for d, train in zip(documents, sides, strict=True) if not train],
    )


def load_streams(config: DataConfig) -> tuple[TokenStream, TokenStream | None, Tokenizer]:
    """Returns the training stream, the held-out stream (None for held_out = 0) and the tokenizer, cached on disk.

    Raises:
      ValueError: the corpus or the tokenizer is unknown or empty, the split leaves one side empty, or it is "test" and
        the corpus has no test part.
    """
    tokenizer, cache = load_tokenizer(config.tokenizer), cache_folder(config.cache_dir)
    train, kept = load_sides(config)
    return tokenise(train, tokenizer, cache), tokenise(kept, tokenizer, cache) if kept else None, tokenizer


def load_sides(config: DataConfig) -> tuple[list[str], list[str]]:
    """Returns the documents to train on and those held out, as `DataConfig.split` says. Raises ValueError likewise."""
    train, own = load_documents(config.corpus), _own_part(config)
    if own is None:
        return split_documents(train, config.held_out, config.split)
    return train, load_documents(config.corpus, own)


def held_out_stream(config: DataConfig) -> TokenStream | None:
    """Returns the held-out stream of `load_streams`; of a corpus with parts of its own, without reading the others."""
    if (own := _own_part(config)) is None:
        return load_streams(config)[1]
    kept = load_documents(config.corpus, own)
    return tokenise(kept, load_tokenizer(config.tokenizer), cache_folder(config.cache_dir))


def _own_part(config: DataConfig) -> str | None:
    """The part of the corpus' own making that is held out; None if it has none, or nothing is."""
    if config.split == "test":
        return "test"
    return "valid" if config.held_out and "valid" in load_parts(config.corpus) else None


def tokenise(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    cache_dir: str | os.PathLike[str],
    *,
    told: Callable[[int], object] = lambda count: None,
) -> TokenStream:
    """Returns the token stream of documents, from the cache if it is there.

    The file's name is the hash of the text and the tokenizer, and it appears in one step, complete: any number of
    processes may ask at once, and one that is killed leaves nothing that is taken for the whole. `told` is called with
    the number of documents that have just become tokens.

    Raises:
      ValueError: there is no document, or the tokenizer made an id outside its vocabulary.
    """
    if not documents:
        raise ValueError("no documents to tokenise")
    path = Path(cache_dir, _key(documents, tokenizer))
    try:
        return TokenStream(path)
    except (OSError, EOFError, ValueError):  # not there, or cut short by a full disk: made again
        _write(path, documents, tokenizer, told)
    return TokenStream(path)


def _key(documents: Sequence[str], tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(b"titans_jax stream 1")
    for document in documents:
        raw = document.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return f"{tokenizer.name}-{digest.hexdigest()[:32]}"


def _write(path: Path, documents: Sequence[str], tokenizer: Tokenizer, told: Callable[[int], object]) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    separator = np.asarray([tokenizer.separator], dtype)
    pieces, starts = [separator], [0]
    for begin in range(0, len(documents), 256):
        some = tokenizer.encode_batch(documents[begin : begin + 256])
        for ids in some:
            pieces += [check_ids(ids, tokenizer.vocab_size).astype(dtype), separator]
            starts.append(starts[-1] + len(ids) + 1)
        told(len(some))
    _replace(Path(f"{path}.starts.npy"), np.asarray(starts, np.int64))
    _replace(Path(f"{path}.tokens.npy"), np.concatenate(pieces))


def _replace(path: Path, array: NDArray) -> None:
    with replacing(path) as file:
        np.save(file, array)


def cache_folder(cache_dir: str | None) -> Path:
    """Returns the folder for tokens that `DataConfig.cache_dir` means."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    folder = Path.home() / ".cache" / "titans_jax"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir(), f"titans_jax-{os.getuid()}")


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"data.{field}={value!r}: {hint}known are {', '.join(known)}")
