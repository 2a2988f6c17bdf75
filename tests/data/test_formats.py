"""Files that hold several documents, and corpora that come in parts of their own."""

import json

import pyarrow  # comes with the extra dev
import pytest
from pyarrow import parquet

from titans_jax.data import DataConfig, held_out_batches, load_documents, load_parts, load_sides, load_streams
from titans_jax.data.formats import articles, documents, part_of

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
        assert part_of(tmp_path / name) is None
    assert list(load_parts(str(tmp_path))) == ["train"]
    assert load_documents(str(tmp_path)) == ["test.py", "train.py", "valid.md"]


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="corpus 'moby-dick': it has no part 'test', only train"):
        load_sides(DataConfig(split="test"))


def test_articles_are_the_text():
    for text in (*WIKI.values(), "", "no heading", " = Only = \n \n x \n", "x\n\n = A = \n\ny\n\n = B = \n\nz\n"):
        assert "".join(articles(text)) == text
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
