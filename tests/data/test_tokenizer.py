import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from titans_jax.data import BYTES, check_ids, load_documents, load_tokenizer, train_bpe

TEXTS = [
    "",
    "Call me Ishmael.",
    " two  spaces\t\r\n\n",
    "añ € 漢字 😀 e\u0301 \u200b",
    "nul \0 and \x7f",
    "<|endoftext|> <s> Ġ Ċ ÿ",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "new" / "bpe.json"
    return train_bpe(load_documents("moby-dick")[2:20], 600, path), str(path)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return BYTES if request.param == "bytes" else bpe[0]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_and_its_bytes_are_counted(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert not np.isin(tokenizer.separator, ids)
    check_ids(ids, tokenizer.vocab_size)


def test_a_batch_is_each_text_alone(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(TEXTS), TEXTS, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_the_separator_has_no_bytes_and_no_text(tokenizer):
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)
    assert tokenizer.byte_lengths[tokenizer.separator] == 0
    assert (np.delete(tokenizer.byte_lengths, tokenizer.separator) > 0).all()
    ids = [*tokenizer.encode("one"), tokenizer.separator, *tokenizer.encode("two")]
    assert tokenizer.decode(ids) == "onetwo"


def test_broken_utf8_is_replaced_not_raised(tokenizer):
    ids = tokenizer.encode("😀")
    assert tokenizer.decode(ids[:-1] if len(ids) > 1 else ids) != ""
    assert "\ufffd" in BYTES.decode(BYTES.encode("é")[:1])
    assert b"".join(tokenizer.to_bytes([index]) for index in ids.tolist()) == "😀".encode()
    assert tokenizer.decode(np.arange(tokenizer.vocab_size))


def test_foreign_ids_are_refused(tokenizer):
    for ids, message in ([tokenizer.vocab_size], "not below the vocabulary"), ([0, -1], "-1 at position 1 is negative"):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match="must be integers, not float64"):
        tokenizer.decode([1.5])


def test_bpe_shortens_text_of_its_kind_and_is_the_same_when_loaded_or_trained_again(bpe, tmp_path):
    trained, path = bpe
    assert trained.vocab_size == 600
    text = load_documents("moby-dick")[30]
    assert len(trained.encode(text)) < 0.65 * len(text.encode())
    again = train_bpe(load_documents("moby-dick")[2:20], 600, tmp_path / "again.json")
    for other in (load_tokenizer(path), again):
        assert other.name == trained.name
        np.testing.assert_array_equal(other.encode(text), trained.encode(text))
    different = train_bpe(load_documents("moby-dick")[2:20], 500, tmp_path / "other.json")
    assert different.name != trained.name


def test_a_small_text_gives_a_small_vocabulary(tmp_path):
    small = train_bpe(["aab aab"], 1000, tmp_path / "small.json")
    assert 257 < small.vocab_size < 300
    assert small.decode(small.encode("aab é")) == "aab é"


def test_a_foreign_byte_level_tokenizer_with_added_tokens_counts_bytes(bpe, tmp_path):
    model = tokenizers.Tokenizer.from_file(bpe[1])
    model.add_special_tokens(["<|é|>"])
    model.enable_truncation(3)
    model.save(str(tmp_path / "added.json"))
    tokenizer, text = load_tokenizer(str(tmp_path / "added.json")), "before <|é|> after"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_white_space_beside_an_added_token_is_kept(bpe, tmp_path, side):
    model = tokenizers.Tokenizer.from_file(bpe[1])
    model.add_special_tokens([tokenizers.AddedToken("<mask>", **{side: True})])
    model.save(str(tmp_path / "added.json"))
    tokenizer, text = load_tokenizer(str(tmp_path / "added.json")), "the  <mask> \n sea"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.byte_lengths[ids].sum() == len(text)
    assert np.isin(model.token_to_id("<mask>"), ids)


def test_a_text_that_would_not_come_back_is_refused(bpe, tmp_path):
    model = tokenizers.Tokenizer.from_file(bpe[1])
    model.normalizer = tokenizers.normalizers.Replace("whale", "shark")  # which no probe would find
    model.save(str(tmp_path / "lossy.json"))
    tokenizer = load_tokenizer(str(tmp_path / "lossy.json"))
    assert tokenizer.decode(tokenizer.encode("a shark")) == "a shark"
    with pytest.raises(ValueError, match="not a lossless byte-level tokenizer"):
        tokenizer.encode("a whale")


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_a_vocabulary_in_gpt2s_files_is_put_together(tmp_path, names):
    """Bytes first, then two merges: what GPT-2's files look like, with a vocabulary small enough to see through."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: index for index, letter in enumerate(sorted(letters))}
    vocabulary |= {"Ġt": 256, "he": 257, "Ġthe": 258, "<|endoftext|>": 259}
    (tmp_path / names[0]).write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / names[1]).write_text("#version: 0.2\nĠ t\nh e\nĠt he\n", encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer.encode("the the é<|endoftext|>")
    assert ids[:3].tolist() == [vocabulary["t"], 257, 258]  # "t", "he", " the"
    assert tokenizer.byte_lengths[[256, 257, 258, vocabulary["é"]]].tolist() == [2, 2, 4, 1]
    assert 259 not in ids and tokenizer.separator == 260 and tokenizer.vocab_size == 261
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())
    (tmp_path / names[1]).write_text("Ġ nowhere\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{names[0]} and {names[1]}: "):
        load_tokenizer(str(tmp_path))


def test_a_folder_with_a_whole_tokenizer_needs_nothing_else(bpe, tmp_path):
    (tmp_path / "tokenizer.json").write_text(Path(bpe[1]).read_text(encoding="utf-8"), encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).name == bpe[0].name


def test_what_is_no_tokenizer_is_refused_in_one_line(bpe, tmp_path):
    broken, lossy, empty = (tmp_path / f"{name}.json" for name in ("broken", "lossy", "empty"))
    broken.write_text("{")
    description = json.loads(Path(bpe[1]).read_text(encoding="utf-8"))
    lossy.write_text(json.dumps(description | {"normalizer": {"type": "Lowercase"}}))
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(empty))
    cases = {
        "byte": "did you mean bytes",
        "gpt2": "known are bytes, or the path",
        str(broken): "not a tokenizers JSON",
        str(lossy): "not a lossless byte-level",
        str(empty): "not a lossless byte-level",
        str(tmp_path): "has neither tokenizer.json nor vocab.json and merges.txt",
    }
    for spec, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            load_tokenizer(spec)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(["a"], 256, tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()
