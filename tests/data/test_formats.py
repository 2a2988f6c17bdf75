"""Files that hold several documents, and corpora that come in parts of their own."""

import gzip
import json

import pyarrow  # comes with the extra dev
import pytest
from pyarrow import parquet

from titans_jax.data import DataConfig, held_out_batches, load_documents, load_parts, load_sides, load_streams
from titans_jax.data.formats import articles, documents, read_text

WIKI = {
    "train": " \n = One = \n \n a = b = c \n = = Part = = \n \n = 5 = \n more \n \n = Two == Three = \n \n second \n",
    "valid": " \n = Four = \n \n valid text \n",
    "test": " \n = Five = \n \n test text \n",
}
ARTICLES = [
    " \n = One = \n \n a = b = c \n = = Part = = \n \n = 5 = \n more \n \n",
    " = Two == Three = \n \n second \n",
]


@pytest.fixture(params=["raw", "tokens", "parquet", "jsonl"])
def wikitext(request, tmp_path):
    """A folder in the shape of WikiText, as published or as the hubs store it, a row a line and blank ones empty."""
    for part, text in WIKI.items():
        rows = [{"text": "" if line == " " else line + "\n"} for line in text.split("\n")[:-1]]
        if request.param == "parquet":
            name = "validation" if part == "valid" else part
            for number, half in enumerate((rows[:3], rows[3:])):
                path = tmp_path / f"{name}-{number:05}-of-00002.parquet"
                parquet.write_table(pyarrow.Table.from_pylist(half), path)
        elif request.param == "jsonl":
            (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            (tmp_path / f"wiki.{part}.{request.param}").write_text(text)
    (tmp_path / "README.md").write_text("not part of it")
    return tmp_path


def test_wikitext_is_its_articles_in_its_own_parts(wikitext):
    assert list(load_parts(str(wikitext))) == ["train", "valid", "test"]
    assert load_documents(str(wikitext)) == ARTICLES
    assert load_documents(str(wikitext), "test") == [WIKI["test"]]


def test_wikitexts_own_split_is_used_and_test_only_when_asked_for(wikitext, tmp_path):
    config = DataConfig(corpus=str(wikitext), sequence=16, batch=1, cache_dir=str(tmp_path / "cache"))
    train, kept, tokenizer = load_streams(config)
    assert tokenizer.decode(train.tokens) == WIKI["train"]
    assert tokenizer.decode(kept.tokens) == WIKI["valid"]

    def scored(config):
        batches = held_out_batches(config)
        return tokenizer.decode([token for b in batches for token in b["targets"][b["mask"] > 0]])

    assert scored(config) == WIKI["valid"]
    test = DataConfig(**{**vars(config), "split": "test"})
    assert scored(test) == WIKI["test"] and load_sides(test) == (ARTICLES, [WIKI["test"]])
    assert load_sides(DataConfig(corpus=str(wikitext), held_out=0.0)) == (ARTICLES, [])


def test_evaluation_reads_the_held_out_part_alone(wikitext, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("titans_jax.data.text.load_documents", lambda *spec: read.append(spec) or ["some text"])
    list(held_out_batches(DataConfig(corpus=str(wikitext), cache_dir=str(tmp_path / "cache"))))
    assert read == [(str(wikitext), "valid")]


def test_a_train_and_a_test_part_leave_the_test_part_alone(tmp_path):
    (tmp_path / "train.txt").write_text("a line of text\n" * 100)
    (tmp_path / "test.txt").write_text("a test")
    train, kept = load_sides(DataConfig(corpus=str(tmp_path)))
    assert "".join(train + kept) == "a line of text\n" * 100 and kept
    assert load_sides(DataConfig(corpus=str(tmp_path), split="test"))[1] == ["a test"]


def test_code_is_not_taken_for_parts(tmp_path):
    for name in ("train.py", "test.py", "valid.md"):
        (tmp_path / name).write_text(name)
    assert list(load_parts(str(tmp_path))) == ["train"]
    assert load_documents(str(tmp_path)) == ["test.py", "train.py", "valid.md"]


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="corpus 'moby-dick': it has no part 'test', only train"):
        load_sides(DataConfig(split="test"))


def test_articles_are_the_text():
    for text in (*WIKI.values(), "", "no heading", " = Only = \n \n x \n", "x\n\n = A = \n\ny\n\n = B = \n\nz\n"):
        assert "".join(articles(text)) == text
        windows = text.replace("\n", "\r\n")
        assert articles(windows) == [article.replace("\n", "\r\n") for article in articles(text)]
    assert articles("x\n\n = A = \n\ny\n\n = B = \n\nz\n") == ["x\n\n", " = A = \n\ny\n\n", " = B = \n\nz\n"]


def test_rows_that_are_documents_stay_apart(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "one = two"}\n{"text": "three\\n", "meta": 1}\n')
    assert documents([path]) == ["one = two", "three\n"]
    path.write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(ValueError, match=r"some.jsonl, line 2: not an object such as"):
        documents([path])


def test_a_table_without_text_says_what_it_has(tmp_path):
    path = tmp_path / "some.parquet"
    parquet.write_table(pyarrow.table({"body": ["x"], "title": ["y"]}), path)
    with pytest.raises(ValueError, match=r"some.parquet: it has no column 'text', only body, title"):
        load_documents(str(path))


def test_json_lines_are_read_as_they_come(tmp_path):
    path = tmp_path / "some.JSONL"
    path.write_bytes('\ufeff{"text": "one\u2028é"}\r\n\n{"text": null}\n{"text": "two"}\n \n'.encode())
    assert load_documents(str(path)) == ["one\u2028é", "two"]
    packed = tmp_path / "some.ndjson.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert load_documents(str(packed)) == ["one\u2028é", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', "the text is not UTF-8: invalid start byte"),
        (b'{"text": "\\ud83d"}', "the text is not UTF-8: surrogates not allowed"),
        (b'{"text": ["a"]}', "the text is list, not a string"),
        (b'{"body": "a"}', "not an object such as"),
        (b"[" * 100_000, "not an object such as"),
    ],
    ids=["bytes", "surrogate", "list", "field", "depth"],
)
def test_a_line_that_is_no_text_is_named(tmp_path, line, message):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"some.jsonl, line 3: {message}"):
        load_documents(str(path))


def test_a_column_of_bytes_is_text(tmp_path):
    path = tmp_path / "some.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array(["é".encode(), None, b"b"], pyarrow.binary())}), path)
    assert load_documents(str(path)) == ["é", "b"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pyarrow.array([1, 2]), "row 1: the text is int, not a string"),
        (pyarrow.array([None, ["a"]]), "row 2: the text is list, not a string"),
        (pyarrow.array([b"a", b"\xff"], pyarrow.binary()), "row 2: the text is not UTF-8"),
        (pyarrow.array([b"a", b"\xff"], pyarrow.binary()).view(pyarrow.string()), "row 2: the text is not UTF-8"),
    ],
    ids=["int", "list", "bytes", "string"],
)
def test_a_column_that_is_no_text_is_named_by_its_row(tmp_path, column, message):
    path = tmp_path / "some.parquet"
    parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(ValueError, match=f"some.parquet, {message}"):
        load_documents(str(path))


@pytest.mark.parametrize("name", ["some.parquet", "some.txt.gz", "some.jsonl.gz"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 100)[:-9])
    else:
        parquet.write_table(pyarrow.table({"text": ["one"] * 100}), path)
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{name}: ") as error:
        load_documents(str(path))
    assert "\n" not in str(error.value)


def test_text_comes_without_its_byte_order_mark_and_may_be_packed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two"))
    assert load_documents(str(tmp_path)) == ["one\r\n", "two"]
    assert read_text(tmp_path / "a.txt") == "one\r\n"
    (tmp_path / "c.txt").write_bytes(b"one\xff")
    with pytest.raises(ValueError, match=r"c.txt: not UTF-8 text: invalid start byte at byte 3"):
        read_text(tmp_path / "c.txt")
