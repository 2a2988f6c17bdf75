"""Text and made-up sequences as batches of numpy arrays; independent of models."""

from titans_jax.data.batches import held_out_batches, steps_an_epoch, train_batches
from titans_jax.data.blocks import Position, token_blocks
from titans_jax.data.corpus import files_of, is_hub, is_prepared, load_documents, load_parts, provenance
from titans_jax.data.formats import is_text, read_text
from titans_jax.data.streams import TokenStream
from titans_jax.data.synthetic import Needles, check_seed, needle_splits, needles, recall
from titans_jax.data.text import (
    DataConfig,
    Split,
    cache_folder,
    content,
    held_out_documents,
    held_out_stream,
    load_sides,
    load_streams,
    prepare,
    prepared_streams,
    split_documents,
    tokenise,
)
from titans_jax.data.tokenizer import BYTES, BPETokenizer, Tokenizer, check_ids, load_tokenizer, train_bpe

__all__ = [
    "BPETokenizer",
    "BYTES",
    "DataConfig",
    "Needles",
    "Position",
    "Split",
    "TokenStream",
    "Tokenizer",
    "cache_folder",
    "check_ids",
    "check_seed",
    "content",
    "files_of",
    "held_out_batches",
    "held_out_documents",
    "held_out_stream",
    "is_hub",
    "is_prepared",
    "is_text",
    "load_documents",
    "load_parts",
    "load_sides",
    "load_streams",
    "load_tokenizer",
    "needle_splits",
    "needles",
    "prepare",
    "prepared_streams",
    "provenance",
    "read_text",
    "recall",
    "split_documents",
    "steps_an_epoch",
    "token_blocks",
    "tokenise",
    "train_batches",
    "train_bpe",
]
