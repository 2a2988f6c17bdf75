"""What a trained model recalls from beyond attention, beside the same model frozen and a baseline without a memory."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from titans_jax import data, metrics
from titans_jax.config import Experiment
from titans_jax.evaluation import Hay, evaluate
from titans_jax.evaluation.haystack import FACT, find_needles
from titans_jax.evaluation.loglikelihood import no_room
from titans_jax.nn import LM, ModelConfig
from titans_jax.training.counts import parameters

TIMES, SAMPLES = (1, 4, 16), 16
"""Lengths of the texts, in training sequences; and texts of each length."""
LEAST = 64  # tokens of a text that has room for a fact and its question

Figures = dict[str, dict[str, Any]]
"""By model: bits_per_byte, and recalled by length."""


def tells_facts(config: data.DataConfig) -> bool:
    """Whether training text tells facts that a text can ask for."""
    return config.facts > 0 and not config.task and config.sequence >= LEAST


def baseline_of(experiment: Experiment) -> Experiment | None:
    """The run of `train.baseline`: the same but its block, and an MLP's width that gives it as many parameters."""
    block = experiment.train.baseline
    if block in ("", experiment.model.block):
        return None
    least = 8 / experiment.model.dim

    def model(eights: int) -> ModelConfig:
        return replace(experiment.model, block=block, ff_mult=least * eights)

    one, two = parameters(model(1)), parameters(model(2))
    eights = max(1, 1 + round((parameters(experiment.model) - one) / (two - one)))
    return replace(
        experiment,
        name=block,
        model=model(eights),
        train=replace(experiment.train, baseline="", sample=0),
        output_dir=str(experiment.output / block),
    )


def figures(experiment: Experiment, models: Mapping[str, LM], sharding: jax.sharding.Sharding) -> Figures:
    """For each model: bits_per_byte on held-out text; and recalled, by length.

    sharding: of a batch of held-out text.
    recalled: the share of texts of a length whose fact, told at the beginning, is answered right at the end.
    """
    source, tokenizer = experiment.data, data.load_tokenizer(experiment.data.tokenizer)
    hay = Hay(data.held_out_documents(source), tokenizer)
    lengths = [times * source.sequence for times in TIMES]
    found: Figures = {}
    with metrics.Progress(len(models) * sum(lengths) * SAMPLES, "facts recalled") as bar:
        for name, model in models.items():
            text = data.held_out_batches(source, limit=experiment.train.eval_batches)
            bits = evaluate(model, text, tokenizer.byte_lengths, sharding=sharding)["bits_per_byte"]
            recalled = {n: _recalled(model, hay, n, source.sequence, bar) for n in lengths if not no_room(model, n)}
            found[name] = {"bits_per_byte": bits, "recalled": recalled}
    return found


def _recalled(model: LM, hay: Hay, length: int, segment: int, bar: metrics.Progress) -> float:
    """The share of right answers after `length` tokens, read `segment` at a time."""
    before = length + 1 - len(hay.tokenizer.encode(FACT.filled(np.random.default_rng(0)).answer))
    (cell,) = find_needles(
        model, hay, FACT, length=before, depths=[0], samples=SAMPLES, segment=segment, on_tokens=bar.advance
    )
    return cell["exact"]


def lines(found: Figures) -> list[str]:
    """The figures to read, a line each."""
    lengths = list(dict.fromkeys(length for row in found.values() for length in row["recalled"]))
    shown = ["  ".join([f"  {'':<14} bits per byte  facts recalled after", *(f"{n:>6,}" for n in lengths), "tokens"])]
    for name, row in found.items():
        shares = (f"{row['recalled'][n]:>6.0%}" if n in row["recalled"] else f"{'-':>6}" for n in lengths)
        shown.append("  ".join([f"  {name:<14} {row['bits_per_byte']:>13.4f}  {'':<20}", *shares]))
    return shown
