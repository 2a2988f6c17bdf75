"""`titans-jax audit`: whether a checkpoint's memory remembers."""

import argparse
import math
import operator
from dataclasses import replace
from pathlib import Path

from titans_jax import data, files, metrics, results, training
from titans_jax.cli.options import (
    checkpoint,
    corpus_option,
    load,
    load_options,
    needle_of,
    needle_options,
    positive,
    run_folder,
    seed,
    source_of,
)
from titans_jax.data.tasks.passkey import NOISE
from titans_jax.evaluation import audit, facts
from titans_jax.evaluation.audit import Check
from titans_jax.evaluation.haystack import FACT, Hay, Needle
from titans_jax.evaluation.html import Section, to_html
from titans_jax.nn import LM
from titans_jax.training.model_io import RELEASED

ROWS = 8  # of held-out text, at least


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: checkpoints, the fact and the texts."""
    shown = "a run's output folder, or released (default): the small model inside the package"
    parser.add_argument("checkpoint", type=checkpoint, nargs="*", default=[RELEASED], metavar="CHECKPOINT", help=shown)
    load_options(parser)
    corpus_option(parser)
    needle_options(parser)
    length = "tokens of a text with a fact (default: as many training sequences as attention cannot reach over)"
    parser.add_argument("--length", type=positive, help=length)
    parser.add_argument("--samples", type=positive, default=32, help="texts with a fact (default 32)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the facts and the texts (default 0)")


def run(options: argparse.Namespace) -> None:
    """Check whether the memories of checkpoints remember: a page of results for each, with pass or fail."""
    if options.samples < 2:
        raise ValueError("--samples 1: memories are swapped between texts; give at least 2")
    for path in options.checkpoint:
        files.check_folder(run_folder(path) / "audit")
        experiment, model, step = load(path, options)
        with training.memory_advice(), metrics.Progress(2, f"audit {path}") as bar:
            source = source_of(experiment, options)
            rows = replace(source, batch=max(ROWS, source.batch))
            batch = next(data.held_out_batches(rows, limit=1))
            checks = audit.text_checks(model, batch)
            bar.advance()
            checks += _recall(source, model, options)
            bar.advance()
        _write(run_folder(path) / "audit", f"{path}, step {step}", checks)


def _recall(source: data.DataConfig, model: LM, options: argparse.Namespace) -> list[Check]:
    tokenizer = data.load_tokenizer(source.tokenizer)
    needle = needle_of(options, FACT if source.facts else Needle())
    texts = [NOISE] if source.task == "passkey" else data.held_out_documents(source)
    seen, row = audit.reach(model), source.sequence
    if math.isinf(seen):
        return [Check("facts from beyond attention", None, "", "nothing: full attention sees the whole text", None)]
    least = seen + facts.size(needle, tokenizer)
    length = options.length or row * math.ceil((least + 1) / row)
    if length <= least:
        raise ValueError(
            f"--length {length}: attention may reach {seen:.0f} tokens back; give at least {least + 1:.0f}"
        )
    made = facts.make_facts(Hay(texts, tokenizer), needle, length, options.samples, options.seed)
    chance = 1 / (9 * 10 ** (needle.digits - 1))
    return [*audit.recall_checks(model, made, chance), *audit.probe_checks(model, made)]


def _write(folder: Path, title: str, checks: list[Check]) -> None:
    """audit.html and audit.json, and the table that is printed."""
    words = {True: "pass", False: "FAIL", None: "-"}
    rows = {check.name: {"": words[check.passed], "found": check.shown, "wanted": check.wanted} for check in checks}
    columns: list[results.Column] = [(name, operator.itemgetter(name)) for name in ("", "found", "wanted")]
    table = results.markdown(columns, rows, title)
    found = audit.verdict(checks)
    lines = {name: f"{row['']}: {row['found']}; wanted {row['wanted']}" for name, row in rows.items()}
    page = to_html(f"Audit of {title}", lines, [Section("What was found", found.capitalize() + ".")], folder)
    files.write(folder / "audit.html", page)
    files.write_json(folder / "audit.json", {"found": found, "checks": [check._asdict() for check in checks]})
    print(f"{table}\n\n{found}\nwritten: {folder}/: audit.html, audit.json\n", flush=True)
