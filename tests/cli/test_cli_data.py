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


def test_a_bpe_is_trained_on_the_training_part_and_its_tokens_are_a_corpus(corpus, tmp_path, capsys):
    result, _ = command(capsys, tmp_path, "bpe", corpus, "--vocab-size", "262")
    bpe = data.load_tokenizer(result["tokenizer"])
    assert bpe.vocab_size == result["vocab_size"] == 262
    assert len(bpe.encode("the thing")) < len("the thing") and result["bytes_a_token"] > 1
    to = tmp_path / "prepared"
    assert cli.main(["data", "prepare", str(corpus), "--tokenizer", result["tokenizer"], "--to", str(to)]) == 0
    counts = json.loads((to / "result.json").read_text())
    train, kept, _ = data.load_streams(data.DataConfig(corpus=str(to), tokenizer=result["tokenizer"]))
    assert counts["train_tokens"] == len(train.tokens) - 1 and counts["valid_tokens"] == len(kept.tokens) - 1
    assert counts["train_bytes"] == len((corpus / "wiki.train.raw").read_bytes())
    first = train.tokens[1]
    assert f"{first}:{bpe.decode([first])!r}" in counts["train_first"]
    shown, text = command(capsys, tmp_path, "show", to)
    assert shown["parts"] == "train, valid, test" and shown["train_tokens"] == counts["train_tokens"]
    assert shown["path"] == str(corpus) and shown["tokenizer"] == bpe.name in text
    (tokens := to / "valid/tokens.bin").write_bytes(tokens.read_bytes()[:-2] + b"ab")
    assert cli.main(["data", "show", str(to), "--output-dir", str(tmp_path / "out")]) == 2
    assert f"{tokens} is not what was written: its CRC-32 differs" in capsys.readouterr().err


def test_the_list_has_every_form(capsys):
    assert cli.main(["data", "list"]) == 0
    text = capsys.readouterr().out
    for form in ("moby-dick", "python", "wiki.train.raw", "hf:Salesforce/wikitext:wikitext-103-raw-v1", "tfds:lm1b"):
        assert form in text


def test_an_unknown_tokenizer_is_one_line(capsys, tmp_path):
    assert cli.main(["data", "prepare", "moby-dick", "--tokenizer", "byte", "--to", str(tmp_path)]) == 2
    assert "did you mean bytes?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "moby-dik"], "did you mean moby-dick?"),
        (["show", "moby-dick", "--split", "test"], "it has no part 'test', only train"),
        (["show", "moby-dick", "--held-out", "2"], "data.held_out=2.0 must be in [0, 1)"),
        (["bpe", "moby-dick", "--vocab-size", "10"], "at least 257"),
    ],
)
def test_an_error_is_one_line(arguments, message, capsys, tmp_path):
    assert cli.main(["data", *arguments, "--output-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.strip().splitlines()[-1].startswith("titans-jax: ")
