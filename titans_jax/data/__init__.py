"""Text and made-up sequences as batches of numpy arrays; knows no model."""

from titans_jax.data.batches import held_out_batches, train_batches
from titans_jax.data.corpus import load_documents, provenance
from titans_jax.data.series import SCENARIOS, Scenario, generate_frequency_shift, generate_repeating_with_anomalies
from titans_jax.data.synthetic import Needles, copy, needle_splits, needles, recall
from titans_jax.data.text import DataConfig, load_streams, split_documents, tokenise
from titans_jax.data.tokenizer import BYTES, Tokenizer, check_ids, load_tokenizer, train_bpe

__all__ = [
    "BYTES",
    "SCENARIOS",
    "DataConfig",
    "Needles",
    "Scenario",
    "Tokenizer",
    "check_ids",
    "copy",
    "generate_frequency_shift",
    "generate_repeating_with_anomalies",
    "held_out_batches",
    "load_documents",
    "load_streams",
    "load_tokenizer",
    "needle_splits",
    "needles",
    "provenance",
    "recall",
    "split_documents",
    "tokenise",
    "train_batches",
    "train_bpe",
]
