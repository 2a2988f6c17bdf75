"""`titans-jax data`: its figures of a corpus are those of training."""

import json

import pytest

from titans_jax import cli, data


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "wiki"
    folder.mkdir()
    for part, title in (("train", "One"), ("valid", "Two"), ("test", "Three")):
        (folder / f"wiki.{part}.raw").write_text(f" \n = {title} = \n \n the thing that the {part} part é says \n")
    return folder


def command(capsys, tmp_path, *arguments):
    assert cli.main(["data", *map(str, arguments), "--output-dir", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out/result.json").read_text()), capsys.readouterr().out


def test_show_counts_both_parts_and_names_the_source(corpus, tmp_path, capsys):
    result, text = command(capsys, tmp_path, "show", corpus)
    train = (corpus / "wiki.train.raw").read_text()
    assert (result["train_documents"], result["train_characters"]) == (1, len(train))
    assert result["train_bytes"] == len(train.encode()) == len(train) + 1
    assert "= Two =" in result["held_out_start"] and "licence                  unknown" in text
    assert "= Three =" in command(capsys, tmp_path, "show", corpus, "--split", "test")[0]["held_out_start"]
    (corpus / "README.md").touch()
    result, text = command(capsys, tmp_path, "show", corpus)
    assert result["parts"] == "train, valid, test"
    assert result["valid_files"] == 1 and result["valid_names"] == str(corpus / "wiki.valid.raw")
    assert json.loads((tmp_path / "out/files.json").read_text())["ignored"] == [str(corpus / "README.md")]
    moby = command(capsys, tmp_path, "show", "moby-dick", "--held-out", "0.1")[0]
    assert moby["licence"].startswith("CC0") and moby["train_documents"] + moby["held_out_documents"] == 138 + 1
    assert 0.08 < moby["held_out_characters"] / (moby["held_out_characters"] + moby["train_characters"]) < 0.12


def test_a_bpe_is_trained_on_the_training_part_and_its_tokens_fill_the_cache(corpus, tmp_path, capsys):
    result, _ = command(capsys, tmp_path, "bpe", corpus, "--vocab-size", "262")
    bpe = data.load_tokenizer(result["tokenizer"])
    assert bpe.vocab_size == result["vocab_size"] == 262
    assert len(bpe.encode("the thing")) < len("the thing") and result["bytes_a_token"] > 1
    cache = tmp_path / "cache"
    result, text = command(capsys, tmp_path, "tokens", corpus, "--tokenizer", result["tokenizer"], "--cache-dir", cache)
    config = data.DataConfig(corpus=str(corpus), tokenizer=str(tmp_path / "out/tokenizer.json"), cache_dir=str(cache))
    train, kept, _ = data.load_streams(config)
    assert result["train_file"] == str(train.path) and result["held_out_file"] == str(kept.path)
    assert result["train_tokens"] == len(train.tokens) - 1
    first = train.tokens[1]
    assert f"{first}:{bpe.decode([first])!r}" in result["train_first"]
    assert len(list(cache.iterdir())) == 6


def test_the_list_has_every_form(capsys):
    assert cli.main(["data", "list"]) == 0
    text = capsys.readouterr().out
    for form in ("moby-dick", "python", "wiki.train.raw", "hf:Salesforce/wikitext:wikitext-103-raw-v1", "tfds:lm1b"):
        assert form in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "moby-dik"], "did you mean moby-dick?"),
        (["show", "moby-dick", "--split", "test"], "it has no part 'test', only train"),
        (["show", "moby-dick", "--held-out", "2"], "data.held_out=2.0 must be in [0, 1)"),
        (["tokens", "moby-dick", "--tokenizer", "byte"], "did you mean bytes?"),
        (["bpe", "moby-dick", "--vocab-size", "10"], "at least 257"),
    ],
)
def test_an_error_is_one_line(arguments, message, capsys, tmp_path):
    assert cli.main(["data", *arguments, "--output-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.strip().splitlines()[-1].startswith("titans-jax: ")
