"""Text to token ids and back: bytes, or a byte-level BPE, trained here or loaded, such as GPT-2's.

Both are lossless on any str. Both have the number of bytes that each id stands for, which turns a loss in nats per
token into bits per byte for any vocabulary.
"""

import abc
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import ArrayLike, NDArray

from titans_jax.data.formats import read_text
from titans_jax.files import expand, replacing
from titans_jax.nearest import unknown


class Tokenizer(abc.ABC):
    """What every tokenizer has, such as `BYTES` and those of `load_tokenizer`.

    Attributes:
      name: identifies the vocabulary: equal names give equal ids.
      vocab_size: every id is below it.
      separator: the id before and after a document; no text encodes to it.
      byte_lengths: int32 [vocab_size], the bytes of UTF-8 that an id adds to the text; 0 for the separator.
    """

    name: str
    vocab_size: int
    separator: int
    byte_lengths: NDArray[np.int32]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Returns the ids of each text; faster than one by one."""

    @abc.abstractmethod
    def to_bytes(self, ids: ArrayLike) -> bytes:
        """Returns the bytes of ids without separators, for text in parts. Raises ValueError for an unknown id."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Returns the ids of a text, int32 [tokens]."""
        return self.encode_batch([text])[0]

    def decode(self, ids: ArrayLike) -> str:
        """Returns the text of ids without separators, broken UTF-8 as U+FFFD. Raises ValueError for an unknown id."""
        return self.to_bytes(ids).decode(errors="replace")


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8, 256 in all.

    The separator is 255: the byte 0xFF occurs in no UTF-8 text, so no extra id is needed, and a vocabulary of 256
    divides evenly over a mesh.

    >>> BYTES.encode("Ahab").tolist(), BYTES.decode([65, 104, 255, 97, 98])
    ([65, 104, 97, 98], 'Ahab')
    """

    name = "bytes"
    vocab_size = 256
    separator = 255
    byte_lengths = np.array([1] * separator + [0], np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Returns the ids of each text."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def to_bytes(self, ids: ArrayLike) -> bytes:
        """Returns the bytes of ids without separators. Raises ValueError for an unknown id."""
        array = check_ids(ids, self.vocab_size)
        return array[array != self.separator].astype(np.uint8).tobytes()


BYTES = ByteTokenizer()

# Cases, accents in both forms, spaces, every byte of UTF-8: a normaliser or a partial alphabet changes some of them.
_PROBE = "Ab  \u00c5 A\u030a \u2460\t" + "".join(
    map(chr, [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x1000)])
)


class BPETokenizer(Tokenizer):
    """Byte-level BPE by the `tokenizers` library, read from its JSON.

    The separator is one more id, the last; the JSON does not have it, so no text can encode to it.
    """

    def __init__(self, json_text: str) -> None:
        """Reads a tokenizer. Raises ValueError: not a tokenizers JSON, or not a lossless byte-level model."""
        try:
            description = json.loads(json_text)
            for token in description.get("added_tokens", []):
                token |= {"lstrip": False, "rstrip": False}  # it would swallow the white space beside it
            self._model = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"not a tokenizers JSON: {str(error).splitlines()[0]}") from None
        self.json = json_text
        self._model.no_truncation()
        self._model.no_padding()
        vocabulary = self._model.get_vocab()
        self.separator = max(vocabulary.values(), default=-1) + 1
        if self.separator > 1 << 24:  # before tables of this size are made
            raise ValueError(f"a tokenizer with the id {self.separator - 1:,}; at most {1 << 24:,} ids can be used")
        self.vocab_size = self.separator + 1
        added = {entry["content"] for entry in description.get("added_tokens", [])}
        byte_of = _byte_of_character()
        self._pieces = [b""] * self.vocab_size
        for token, index in vocabulary.items():
            # An added token is stored as its text, all others with one character per byte.
            self._pieces[index] = token.encode() if token in added else bytes(byte_of.get(char, 0) for char in token)
        self.byte_lengths = np.asarray([len(piece) for piece in self._pieces], np.int32)
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
        self.name = f"bpe-{self.vocab_size}-{digest}"
        self.encode(_PROBE)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Returns the ids of each text; faster than one by one. Raises ValueError if they do not stand for the text."""
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        for ids, text in zip(rows, texts, strict=True):
            if self.to_bytes(ids) != text.encode():
                raise ValueError("not a lossless byte-level tokenizer: a text's ids do not decode to it")
        return rows

    def to_bytes(self, ids: ArrayLike) -> bytes:
        """Returns the bytes of ids without separators. Raises ValueError for an unknown id."""
        return b"".join(self._pieces[index] for index in check_ids(ids, self.vocab_size).ravel().tolist())


def _byte_of_character() -> dict[str, int]:
    """GPT-2's code of bytes as characters: printable Latin-1 as itself, the rest from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(shown))
    return {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


def load_tokenizer(spec: str) -> Tokenizer:
    """Returns a tokenizer by name or path.

    Args:
      spec: "bytes"; the path of a byte-level tokenizers JSON, such as `train_bpe` writes; or a folder with a
        `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt` (`encoder.json` and `vocab.bpe` as first published).

    Raises ValueError: the name or file does not exist, or the file has no byte-level tokenizer.

    >>> load_tokenizer("bytes").vocab_size
    256
    """
    if spec == BYTES.name:
        return BYTES
    path = expand(spec)
    try:
        if path.is_dir():
            return BPETokenizer(_folder_json(path))
        if path.is_file():
            return BPETokenizer(read_text(path))
    except ValueError as error:
        raise ValueError(f"tokenizer {spec!r}: {error}") from None
    raise unknown("data.tokenizer", spec, [BYTES.name], ", or the path of a tokenizers JSON file or a folder")


def _folder_json(folder: Path) -> str:
    """The tokenizers JSON of a folder, made from a vocabulary and merges where the folder has those."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return read_text(whole)
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        paths = folder / vocabulary, folder / merges
        if all(path.is_file() for path in paths):
            try:
                return _byte_level(tokenizers.models.BPE.from_file(*map(str, paths))).to_str()
            except Exception as error:  # the library raises plain Exception
                raise ValueError(f"{vocabulary} and {merges}: {str(error).splitlines()[0]}") from None
    raise ValueError("the folder has neither tokenizer.json nor vocab.json and merges.txt")


def _byte_level(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    """Merges over bytes, inside GPT-2's words."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def train_bpe(documents: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> BPETokenizer:
    """Trains byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2), writes it to `path` and returns it.

    Args:
      documents: the training side of `split_documents`.
      vocab_size: at least 257, with the separator. A small text may give fewer ids.
      path: the JSON file to write, replaced in one step.

    Raises ValueError: vocab_size is below 257.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size}: byte-level BPE needs at least 257 (256 bytes and the separator)")
    model = _byte_level(tokenizers.models.BPE())
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    model.train_from_iterator(documents, trainer)
    text = model.to_str()
    with replacing(path) as file:
        file.write(text.encode())
    return BPETokenizer(text)


def check_ids(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Returns the ids as an array, if all are in [0, vocab_size); JAX would silently clamp an id out of range.

    Raises ValueError: an id is out of range, or they are not integers.

    >>> check_ids([1, 300], 256)
    Traceback (most recent call last):
    ValueError: token id 300 at position 1 is not below the vocabulary's size 256
    """
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"token ids must be integers, not {array.dtype}")
    array = array.astype(np.int64)
    wrong = np.flatnonzero((array < 0) | (array >= vocab_size))
    if wrong.size:
        value, where = array.ravel()[wrong[0]], wrong[0]
        relation = "negative" if value < 0 else f"not below the vocabulary's size {vocab_size}"
        raise ValueError(f"token id {value} at position {where} is {relation}")
    return array
