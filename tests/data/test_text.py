import multiprocessing
import pickle

import numpy as np
import pytest

from titans_jax.data import (
    BYTES,
    DataConfig,
    cache_folder,
    content,
    load_documents,
    load_streams,
    load_tokenizer,
    split_documents,
    tokenise,
    train_bpe,
)
from titans_jax.data.tokenizer import ByteTokenizer

DOCUMENTS = ["one\ntwo\n", "three é\n", "x" * 40]


class Wide(ByteTokenizer):
    name, vocab_size = "wide", 70_000


class Narrow(ByteTokenizer):
    name, vocab_size, separator = "narrow", 120, 119


def test_a_stream_has_each_document_between_separators(tmp_path):
    stream = tokenise(DOCUMENTS, BYTES, tmp_path)
    assert isinstance(stream.tokens, np.memmap) and stream.tokens.dtype == np.uint16
    raw = [document.encode() for document in DOCUMENTS]
    assert stream.tokens.astype(np.uint8).tobytes() == b"\xff" + b"\xff".join(raw) + b"\xff"
    assert len(stream.starts) == len(DOCUMENTS) + 1
    assert (stream.tokens[stream.starts] == BYTES.separator).all()


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path):
    assert tokenise(DOCUMENTS, Wide(), tmp_path).tokens.dtype == np.uint32


def test_the_cache_is_used_again_and_told_apart_by_text_and_tokenizer(tmp_path):
    first = tokenise(DOCUMENTS, BYTES, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert len(written) == 4 and tokenise(DOCUMENTS, BYTES, tmp_path).path == first.path
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    joined = tokenise(["".join(DOCUMENTS)], BYTES, tmp_path)
    assert len({first.path, joined.path, tokenise(DOCUMENTS, Wide(), tmp_path).path}) == 3


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "stream.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "gone"])
def test_a_damaged_cache_is_made_again_and_said_so(tmp_path, name, damage, caplog):
    stream = tokenise(DOCUMENTS, BYTES, tmp_path)
    want, path = {file.name: file.read_bytes() for file in stream.path.iterdir()}, stream.path / name
    if damage == "gone":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes({"cut": raw[:-1], "changed": raw, "emptied": b""}[damage])
    again = tokenise(DOCUMENTS, BYTES, tmp_path)
    assert {file.name: file.read_bytes() for file in again.path.iterdir()} == want
    tokenise(DOCUMENTS, BYTES, tmp_path)
    [message] = caplog.messages
    assert message.startswith(f"cached tokens {stream.path} are damaged and made again: ")


def test_an_id_outside_the_vocabulary_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="token id 195 at position 6 is not below the vocabulary's size 120"):
        tokenise(DOCUMENTS, Narrow(), tmp_path)
    with pytest.raises(ValueError, match="no documents"):
        tokenise([], BYTES, tmp_path)
    assert not list(tmp_path.iterdir())


def _tokenise(cache, queue):
    queue.put(np.array(tokenise(DOCUMENTS * 5000, BYTES, cache).tokens).tobytes())


def test_processes_may_write_the_cache_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_tokenise, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert results[0] == results[1] and len(results[0]) == 2 * (
        5000 * (3 + sum(len(d.encode()) for d in DOCUMENTS)) + 1
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stream_is_pickled_as_its_path(tmp_path):
    stream = tokenise(DOCUMENTS * 1000, BYTES, tmp_path)
    packed = pickle.dumps(stream)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).tokens, stream.tokens)


@pytest.mark.parametrize("held_out", [0.01, 0.05, 0.3])
def test_the_tail_is_held_out_at_a_line_end_and_nothing_is_lost(held_out):
    documents = load_documents("moby-dick")
    train, kept = split_documents(documents, held_out)
    text = "".join(documents)
    assert "".join(train) + "".join(kept) == text
    assert train[-1].endswith("\n")
    assert len("".join(kept)) / len(text) == pytest.approx(held_out, rel=0.1)


def test_a_text_without_lines_is_cut_where_asked():
    for text in ("x" * 100, "x" * 99 + "\n"):
        assert split_documents([text], 0.25) == ([text[:75]], [text[75:]])


def test_whole_documents_are_held_out_whatever_their_order():
    documents = load_documents("moby-dick")
    train, kept = split_documents(documents, 0.1, "documents")
    assert sorted(train + kept) == sorted(documents)
    assert [document for document in documents if document in train] == train
    assert len("".join(kept)) / len("".join(documents)) == pytest.approx(0.1, abs=0.04)
    assert set(split_documents(documents[::-1], 0.1, "documents")[1]) == set(kept)


def test_a_split_that_leaves_a_side_empty_is_refused():
    for documents, held_out, split, side in [
        (["ab"], 0.1, "tail", "held-out"),
        (["ab"], 0.9, "tail", "training"),
        (["a long document"], 0.5, "documents", "training"),
        ([], 0.5, "tail", "held-out"),
    ]:
        with pytest.raises(ValueError, match=f"leave no {side} text"):
            split_documents(documents, held_out, split)
    assert split_documents(["ab"], 0.0) == (["ab"], [])


def test_streams_of_a_configuration_are_the_two_sides_of_the_split(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a line of text\n" * 100)
    train, kept, tokenizer = load_streams(DataConfig(corpus=str(path), cache_dir=str(tmp_path / "cache")))
    assert tokenizer.decode(train.tokens) + tokenizer.decode(kept.tokens) == path.read_text()
    assert load_streams(DataConfig(corpus=str(path), held_out=0.0, cache_dir=str(tmp_path / "cache")))[1] is None


def test_the_content_is_each_side_of_the_text_and_the_tokenizer(tmp_path):
    paths = {"training text": "train.txt", "held-out text": "val.txt", "tokenizer": "bpe.json"}
    texts = {name: f"a {name} of the sea\n" for name in paths}
    (tmp_path / "corpus").mkdir()
    config = DataConfig(corpus=str(tmp_path / "corpus"), tokenizer=str(tmp_path / "bpe.json"))

    def write(name):
        if name == "tokenizer":
            train_bpe([texts[name]], 260, config.tokenizer)
        else:
            (tmp_path / "corpus" / paths[name]).write_text(texts[name])

    for name in paths:
        write(name)
    before = content(config)
    assert content(config) == before
    for name in paths:
        kept = texts[name]
        texts[name] = kept.replace("sea", "sky")
        write(name)
        after = content(config)
        assert [key for key in paths if after[key] != before[key]] == [name]
        texts[name] = kept
        write(name)


def test_without_a_folder_the_cache_is_the_users_or_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    stream = load_streams(DataConfig())[0]
    assert stream.path.parent == tmp_path / ".cache" / "titans_jax"
    (tmp_path / "file").touch()
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "file")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    assert load_streams(DataConfig())[0].path.parent.parent == tmp_path / "temporary"


def test_without_a_home_folder_the_cache_is_temporary_and_a_tilde_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as in a container that runs as any user
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache_folder(None).parent == tmp_path
    for use in (
        lambda: cache_folder("~/cache"),
        lambda: load_documents("~/text"),
        lambda: load_tokenizer("~/bpe.json"),
    ):
        with pytest.raises(ValueError, match="^~/.*: there is no home folder for ~; give a full path"):
            use()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("packing", "steam", "data.packing: 'steam' is unknown; known are stream, documents; did you mean stream?"),
        ("split", "head", "data.split: 'head' is unknown; known are tail, documents, test"),
        ("sequence", 0, "data.sequence=0 must be at least 1"),
        ("batch", 0, "data.batch=0 must be at least 1"),
        ("workers", -1, "data.workers=-1 must be at least 0"),
        ("held_out", 1.0, "data.held_out=1.0 must be in [0, 1)"),
        ("held_out", float("nan"), "data.held_out=nan must be in [0, 1)"),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    with pytest.raises(ValueError) as error:
        DataConfig(**{field: value})
    assert str(error.value) == message


def test_packed_rows_must_hold_whole_aligned_blocks():
    with pytest.raises(ValueError, match="data.sequence=100 must be a multiple of data.align=64"):
        DataConfig(sequence=100, align=64, packing="documents")
    DataConfig(sequence=100, align=64)
