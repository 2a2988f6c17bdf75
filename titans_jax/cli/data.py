"""`titans-jax data`: list, show and prepare corpora."""

import argparse
from pathlib import Path
from typing import Any, get_args

from titans_jax import data, files, metrics, results
from titans_jax.cli.options import first_line, path, positive

FORMS = {
    "moby-dick": "Moby-Dick, 1.2 MB, part of the package",
    "python": "the source of Python's standard library, about 12 MB",
    "FILE, FOLDER": "text, JSON lines, Parquet; names such as wiki.train.raw, val.txt, test/ are a folder's parts",
    "PREPARED FOLDER": "tokens that `titans-jax data prepare` wrote; they are read without their text",
    "hf:NAME[:CONFIG]": "a Hugging Face dataset, such as hf:Salesforce/wikitext:wikitext-103-raw-v1, or a saved one",
    "tfds:NAME[/CONFIG]": "a TensorFlow Datasets dataset, such as tfds:lm1b, from $TFDS_DATA_DIR",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each action."""
    kinds = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    kinds.add_parser("list", help=first_line(list_corpora)).set_defaults(act=list_corpora)
    for name, act in (("show", show), ("prepare", prepare), ("bpe", bpe)):
        kind = kinds.add_parser(name, help=first_line(act), description=act.__doc__)
        kind.add_argument("corpus", help="as data.corpus; `titans-jax data list` lists the forms")
        kind.add_argument("--split", choices=get_args(data.Split), help="the held-out part, as data.split")
        kind.add_argument("--held-out", type=float, help="the held-out share, as data.held-out")
        if name == "prepare":
            kind.add_argument("--tokenizer", help="as data.tokenizer (default bytes)")
            kind.add_argument("--to", dest="output_dir", type=path, required=True, help="folder of the tokens")
        if name == "bpe":
            kind.add_argument("--vocab-size", type=positive, default=8192, help="vocabulary size (default %(default)s)")
        if name != "prepare":
            folder = Path("outputs", "data", name)
            kind.add_argument("--output-dir", type=path, default=folder, help="output folder (default %(default)s)")
        kind.set_defaults(act=act)


def run(options: argparse.Namespace) -> None:
    """Show a corpus' source, licence and split; write its tokens to a folder; train a BPE tokenizer on it."""
    options.act(options)


def list_corpora(options: argparse.Namespace) -> None:
    """List the forms of a corpus."""
    print("\n".join(f"{name:<20} {text}" for name, text in FORMS.items()))


def show(options: argparse.Namespace) -> None:
    """Show the source, licence, files, size, held-out part and first characters of a corpus; check a prepared one."""
    config = _config(options)
    result: dict[str, Any] = {"corpus": config.corpus} | data.provenance(config.corpus)
    result["parts"] = ", ".join(data.load_parts(config.corpus))
    found = {part: [str(path) for path in paths] for part, paths in data.files_of(config.corpus).items()}
    for part, paths in found.items():
        result |= {f"{part}_files": len(paths), f"{part}_names": ", ".join(paths[:8] + ["..."] * (len(paths) > 8))}
    files.write_json(options.output_dir / "files.json", found)
    if data.is_prepared(config.corpus):
        streams = data.prepared_streams(config.corpus)
        for stream in streams.values():
            stream.check()
        return _report(options, result | _counts(streams))
    for name, documents in zip(("train", "held_out"), data.load_sides(config), strict=True):
        result |= {f"{name}_documents": len(documents), f"{name}_characters": sum(map(len, documents))}
        result[f"{name}_bytes"] = sum(len(document.encode()) for document in documents)
        result |= {f"{name}_start": documents[0][:60]} if documents else {}
    _report(options, result)


def prepare(options: argparse.Namespace) -> None:
    """Write the tokens of a corpus to a folder, which is then a corpus that is read without its text."""
    config = _config(options)
    tokenizer = data.load_tokenizer(config.tokenizer)
    with metrics.Progress(None, "tokenise", unit="documents") as bar:
        streams = data.prepare(config, options.output_dir, bar.advance)
    result = _counts(streams)
    for part, stream in streams.items():
        first = stream.tokens[1:13].tolist()
        result[f"{part}_first"] = " ".join(f"{index}:{tokenizer.decode([index])!r}" for index in first)
    _report(options, result)


def _counts(streams: dict[str, data.TokenStream]) -> dict[str, Any]:
    """What token streams hold, by part."""
    result: dict[str, Any] = {}
    for part, stream in streams.items():
        count, size = len(stream.tokens) - 1, stream.record["bytes"]
        result |= {"tokenizer": stream.record["tokenizer"], f"{part}_documents": stream.record["documents"]}
        result |= {f"{part}_bytes": size, f"{part}_tokens": count, f"{part}_bytes_a_token": size / count}
    return result


def bpe(options: argparse.Namespace) -> None:
    """Train a byte-level BPE on the training part of a corpus and write tokenizer.json."""
    documents, _ = data.load_sides(_config(options))
    path = options.output_dir / "tokenizer.json"
    with metrics.Progress(len(documents), "read", unit="documents") as bar:
        tokenizer = data.train_bpe(bar.each(documents), options.vocab_size, path)
    some = "".join(documents)[:100_000]
    result = {"corpus": options.corpus, "tokenizer": str(path), "vocab_size": tokenizer.vocab_size}
    _report(options, result | {"bytes_a_token": len(some.encode()) / len(tokenizer.encode(some))})


def _config(options: argparse.Namespace) -> data.DataConfig:
    names = ("corpus", "split", "held_out", "tokenizer")
    values = {name: getattr(options, name, None) for name in names}
    return data.DataConfig(**{name: value for name, value in values.items() if value is not None})


def _report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    results.write_result(options.output_dir, result)
    for name, value in result.items():
        shown = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name:<24} {' '.join(str(shown).split())}")
    print(f"{'written':<24} {options.output_dir}/")
