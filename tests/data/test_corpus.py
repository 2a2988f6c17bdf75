import gzip
import hashlib
import platform

import pytest

from titans_jax.data import corpus, load_documents, provenance


def test_moby_dick_is_the_pinned_text_in_chapter_order():
    documents = load_documents("moby-dick")
    assert hashlib.sha256("\f".join(documents).encode()).hexdigest() == corpus.MOBY_DICK_SHA256
    assert documents[2].startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    assert documents[136].startswith("CHAPTER 135. ")
    assert documents[-1].startswith("Epilogue")


def test_a_changed_moby_dick_is_refused(tmp_path, monkeypatch):
    (tmp_path / "moby_dick.txt.gz").write_bytes(gzip.compress(b"Call me Ahab."))
    monkeypatch.setattr(corpus.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="sha256 is .* install the package again"):
        load_documents("moby-dick")


def test_python_library_has_the_library_and_says_its_version():
    documents = load_documents("python")
    assert sum(map(len, documents)) > 5_000_000
    assert any("class OrderedDict(dict)" in document for document in documents)
    assert load_documents("python") == documents
    assert platform.python_version() in provenance("python")["source"]


def test_a_folder_is_its_text_files_sorted_by_path(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    texts = {"b/z.txt": "four\r\n", "a.md": "one", "c.txt": "two é", "ä.txt": "three", ".hidden": "no", ".git/x": "no"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    assert load_documents(str(tmp_path)) == ["one", "two é", "three", "four\r\n"]


def test_a_file_is_one_document_and_has_a_provenance(tmp_path):
    path = tmp_path / "text"
    path.write_text("hello")
    assert load_documents(str(path)) == ["hello"]
    assert provenance(str(path))["path"] == str(path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("moby-dik", "data.corpus: 'moby-dik' is unknown; known are moby-dick, python, or the path"),
        ("wikitext", "data.corpus: 'wikitext' is unknown; known are moby-dick, python, or the path"),
        ("", "data.corpus: '' is unknown; known are"),
    ],
)
def test_an_unknown_name_gets_the_known_ones(spec, message):
    for function in (load_documents, provenance):
        with pytest.raises(ValueError) as error:
            function(spec)
        assert str(error.value).startswith(message)
        assert str(error.value).endswith("did you mean moby-dick?") == (spec == "moby-dik")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["missing.txt", "no/folder"])
def test_a_path_where_nothing_is_says_so(spec):
    with pytest.raises(ValueError, match=f"corpus '{spec}': there is no such file or folder in /"):
        load_documents(spec)


def test_text_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no UTF-8 text in it"):
        load_documents(str(tmp_path))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8 text in it; iconv -f latin1"):
        load_documents(str(binary))
