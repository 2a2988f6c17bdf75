"""`titans-jax data`: list, show and tokenise corpora."""

import argparse
from pathlib import Path
from typing import Any, get_args

from titans_jax import data, files, metrics, results
from titans_jax.cli.options import first_line, path, positive

FORMS = {
    "moby-dick": "Moby-Dick, 1.2 MB, part of the package",
    "python": "the source of Python's standard library, about 12 MB",
    "FILE, FOLDER": "text, JSON lines, Parquet; names such as wiki.train.raw, val.txt, test/ are a folder's parts",
    "hf:NAME[:CONFIG]": "a Hugging Face dataset, such as hf:Salesforce/wikitext:wikitext-103-raw-v1, or a saved one",
    "tfds:NAME[/CONFIG]": "a TensorFlow Datasets dataset, such as tfds:lm1b, from $TFDS_DATA_DIR",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each action."""
    kinds = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    kinds.add_parser("list", help=first_line(list_corpora)).set_defaults(act=list_corpora)
    for name, act in (("show", show), ("tokens", tokens), ("bpe", bpe)):
        kind = kinds.add_parser(name, help=first_line(act), description=act.__doc__)
        kind.add_argument("corpus", help="as data.corpus; `titans-jax data list` lists the forms")
        kind.add_argument("--split", choices=get_args(data.Split), help="the held-out part, as data.split")
        kind.add_argument("--held-out", type=float, help="the held-out share, as data.held-out")
        if name == "tokens":
            kind.add_argument("--tokenizer", help="as data.tokenizer (default bytes)")
            kind.add_argument("--cache-dir", help="folder of the token cache, as data.cache-dir")
        if name == "bpe":
            kind.add_argument("--vocab-size", type=positive, default=8192, help="vocabulary size (default %(default)s)")
        folder = Path("outputs", "data", name)
        kind.add_argument("--output-dir", type=path, default=folder, help="output folder (default %(default)s)")
        kind.set_defaults(act=act)


def run(options: argparse.Namespace) -> None:
    """Show a corpus' source, licence and split; fill its token cache; train a BPE tokenizer on it."""
    options.act(options)


def list_corpora(options: argparse.Namespace) -> None:
    """List the forms of a corpus."""
    print("\n".join(f"{name:<20} {text}" for name, text in FORMS.items()))


def show(options: argparse.Namespace) -> None:
    """Show the source, licence, files, size, held-out part and first characters of a corpus."""
    config = _config(options)
    result: dict[str, Any] = {"corpus": config.corpus} | data.provenance(config.corpus)
    result["parts"] = ", ".join(data.load_parts(config.corpus))
    found = {part: [str(path) for path in paths] for part, paths in data.files_of(config.corpus).items()}
    for part, paths in found.items():
        result |= {f"{part}_files": len(paths), f"{part}_names": ", ".join(paths[:8] + ["..."] * (len(paths) > 8))}
    files.write_json(options.output_dir / "files.json", found)
    for name, documents in zip(("train", "held_out"), data.load_sides(config), strict=True):
        result |= {f"{name}_documents": len(documents), f"{name}_characters": sum(map(len, documents))}
        result[f"{name}_bytes"] = sum(len(document.encode()) for document in documents)
        result |= {f"{name}_start": documents[0][:60]} if documents else {}
    _report(options, result)


def tokens(options: argparse.Namespace) -> None:
    """Fill the token cache of a corpus and show its first tokens."""
    config, tokenizer = _config(options), data.load_tokenizer(options.tokenizer or data.BYTES.name)
    result = {"corpus": config.corpus, "tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size}
    sides, folder = data.load_sides(config), data.cache_folder(config.cache_dir)
    with metrics.Progress(sum(map(len, sides)), "tokenise", unit="documents") as bar:
        for name, documents in zip(("train", "held_out"), sides, strict=True):
            if documents:
                stream = data.tokenise(documents, tokenizer, folder, on_documents=bar.advance)
                count, size = len(stream.tokens) - 1, sum(len(document.encode()) for document in documents)
                first = stream.tokens[1:13].tolist()
                result |= {f"{name}_tokens": count, f"{name}_bytes": size, f"{name}_bytes_a_token": size / count}
                result[f"{name}_first"] = " ".join(f"{index}:{tokenizer.decode([index])!r}" for index in first)
                result[f"{name}_file"] = str(stream.path)
    _report(options, result)


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
    names = ("corpus", "split", "held_out", "cache_dir")
    values = {name: getattr(options, name, None) for name in names}
    return data.DataConfig(**{name: value for name, value in values.items() if value is not None})


def _report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    results.write_result(options.output_dir, result)
    for name, value in result.items():
        shown = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name:<24} {' '.join(str(shown).split())}")
    print(f"{'written':<24} {options.output_dir}/")
