"""Token streams on disk: unfinished ones go on, damage is found, a prepared corpus gives the batches of its text."""

import contextlib
import multiprocessing
import os
import signal

import numpy as np
import pytest

from titans_jax.data import DataConfig, held_out_batches, held_out_documents, prepare, train_batches, train_bpe
from titans_jax.data import streams as module
from titans_jax.data.streams import TokenStream, write_stream
from titans_jax.data.text import content, held_out_stream, load_streams
from titans_jax.data.tokenizer import BYTES
from titans_jax.sealed import read_sealed, write_sealed

DOCUMENTS = [f"document {n}: {'é' * (n % 7)}\n" * (1 + n % 5) for n in range(40)]


@pytest.fixture
def small(monkeypatch):
    """Pieces of four documents, and a record of an unfinished stream behind each."""
    monkeypatch.setattr(module, "DOCUMENTS", 4)
    monkeypatch.setattr(module, "SAVED", 1)


def _bytes(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _killed(path, at):
    module.DOCUMENTS, module.SAVED = 4, 1

    def documents():
        yield from DOCUMENTS[:at]
        os.kill(os.getpid(), signal.SIGKILL)

    write_stream(path, documents(), BYTES)


@pytest.mark.parametrize("at", [2, 11, 40])
def test_a_stream_goes_on_after_sigkill_to_the_same_bytes(tmp_path, small, at):
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(tmp_path / "killed", at))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "killed/stream.json").exists()
    assert (tmp_path / "killed/unfinished.json").exists() == (at > 4)
    encoded = []

    class Watched(type(BYTES)):
        def encode_batch(self, texts):
            encoded.extend(texts)
            return super().encode_batch(texts)

    write_stream(tmp_path / "killed", iter(DOCUMENTS), Watched())
    write_stream(tmp_path / "whole", iter(DOCUMENTS), BYTES)
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")
    assert encoded == DOCUMENTS[at // 4 * 4 :]  # what was written is not tokenised again


def test_a_record_behind_its_files_drops_what_is_behind_it(tmp_path, small):
    def stops():
        yield from DOCUMENTS[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(tmp_path / "a", stops(), BYTES)
    with open(tmp_path / "a/tokens.bin", "ab") as file:
        file.write(b"written and not recorded")
    write_stream(tmp_path / "a", DOCUMENTS, BYTES)
    TokenStream(tmp_path / "a").check()
    assert TokenStream(tmp_path / "a").documents(BYTES) == DOCUMENTS
    with pytest.raises(KeyboardInterrupt):
        write_stream(tmp_path / "b", stops(), BYTES)
    os.truncate(tmp_path / "b/starts.bin", 8)
    with pytest.raises(ValueError, match="starts.bin has fewer than the 168 bytes of its record"):
        write_stream(tmp_path / "b", DOCUMENTS, BYTES)


def _all(finished):
    """All documents; a stream of them is left unfinished unless it may end."""
    yield from DOCUMENTS
    if not finished:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("finished", "others"),
    [
        (False, DOCUMENTS[:3]),
        (True, DOCUMENTS[:3]),
        (False, [*DOCUMENTS[:-1], "another"]),
        (True, [*DOCUMENTS[:-1], "another"]),
        (False, ["another", *DOCUMENTS[1:]]),
        (True, ["another", *DOCUMENTS[1:]]),
        (True, [*DOCUMENTS, "one more"]),
    ],
)
def test_another_text_is_refused(tmp_path, small, finished, others):
    with contextlib.suppress(KeyboardInterrupt):
        write_stream(tmp_path, _all(finished), BYTES)
    before = _bytes(tmp_path)
    with pytest.raises(ValueError, match="has tokens of another text or tokenizer; give another folder, or remove it"):
        write_stream(tmp_path, others, BYTES)
    assert _bytes(tmp_path) == before


def test_an_unfinished_stream_goes_on_with_what_is_behind_it(tmp_path, small):
    with pytest.raises(KeyboardInterrupt):
        write_stream(tmp_path, _all(finished=False), BYTES)
    assert write_stream(tmp_path, [*DOCUMENTS, "one more"], BYTES).documents(BYTES) == [*DOCUMENTS, "one more"]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for n, document in enumerate(DOCUMENTS):
        (folder / f"{n:02}.txt").write_text(document * 3)
    train_bpe(DOCUMENTS, 280, tmp_path / "bpe.json")
    return folder


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe.json"])
@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("split", ["tail", "documents"])
def test_a_prepared_corpus_gives_the_batches_of_its_text_and_reads_none(
    corpus, tmp_path, monkeypatch, tokenizer, packing, split
):
    tokenizer = str(tmp_path / tokenizer) if "." in tokenizer else tokenizer
    text = DataConfig(
        corpus=str(corpus), tokenizer=tokenizer, packing=packing, split=split, sequence=32, batch=3, facts=0.5,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    prepare(text, tmp_path / "prepared")
    prepared = DataConfig(
        corpus=str(tmp_path / "prepared"), tokenizer=tokenizer, packing=packing, sequence=32, batch=3, facts=0.5
    )

    def first(config):
        batches = train_batches(config, seed=3)
        return (
            [next(batches) for _ in range(5)],
            [*held_out_batches(config)],
            content(config),
            held_out_documents(config),
        )

    wanted = first(text)
    with monkeypatch.context() as patch:
        patch.setattr("titans_jax.data.text.load_documents", None)
        np.testing.assert_equal(first(prepared), wanted)
    assert load_streams(DataConfig(corpus=str(tmp_path / "prepared"), tokenizer=tokenizer, held_out=0.0))[1] is None


def test_a_corpus_that_cannot_be_used_is_named(corpus, tmp_path, monkeypatch):
    config, to = DataConfig(corpus=str(corpus)), tmp_path / "prepared"
    with monkeypatch.context() as patch:
        patch.setattr("titans_jax.data.text.write_stream", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config, to)
    prepared = DataConfig(corpus=str(to))
    with pytest.raises(ValueError, match="its preparation was stopped; run the same `titans-jax data prepare` again"):
        load_streams(prepared)
    prepare(config, to)
    prepare(config, to)  # compares only
    for wrong, message in (
        (
            DataConfig(corpus=str(to), tokenizer=str(tmp_path / "bpe.json")),
            "was prepared with the tokenizer bytes; data",
        ),
        (DataConfig(corpus=str(to), split="test"), "it has no part 'test', only train, valid"),
        (DataConfig(corpus=str(to), task="passkey"), "it has tokens and no text; give the text that it was made of"),
    ):
        with pytest.raises(ValueError, match=message):
            next(train_batches(wrong, seed=0))
            next(held_out_batches(wrong))
    with pytest.raises(ValueError, match="is prepared"):
        prepare(prepared, tmp_path / "again")
    tokens = to / "valid/tokens.bin"
    os.truncate(tokens, tokens.stat().st_size - 2)
    with pytest.raises(ValueError, match=r"valid/tokens.bin has [\d,]+ bytes, not"):
        held_out_stream(prepared)
    tokens.unlink()
    with pytest.raises(ValueError, match="valid/tokens.bin: No such file"):
        held_out_stream(prepared)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prepared.json", {"parts": None}, "prepared.json is no record of a prepared corpus"),
        ("prepared.json", {"parts": ["../train"]}, "prepared.json is no record of a prepared corpus"),
        ("train/stream.json", {"version": 0}, "train/stream.json has version 0; this is version 1: make it again"),
        ("train/stream.json", {"tokens": -1}, "train/stream.json is no record of a token stream"),
        ("train/stream.json", {"tokens": 1 << 80}, "train/tokens.bin has .* bytes, not"),
        ("train/stream.json", {"documents": "1"}, "train/stream.json is no record of a token stream"),
        ("train/stream.json", {"crc32": {}}, "train/stream.json is no record of a token stream"),
        ("train/stream.json", {"dtype": "O"}, "train/stream.json has the dtype 'O'; it must be uint16 or uint32"),
    ],
)
def test_a_record_of_something_else_is_named(corpus, tmp_path, name, change, message):
    prepare(DataConfig(corpus=str(corpus)), tmp_path / "prepared")
    path = tmp_path / "prepared" / name
    write_sealed(path, read_sealed(path) | change)
    with pytest.raises(ValueError, match=message):
        load_streams(DataConfig(corpus=str(tmp_path / "prepared")))
