"""Short trainings side by side: rules, optimizers, models, in tables that survive an interruption."""

from titans_jax.training.bench.formal import FORMAL_MODELS, compare_formal
from titans_jax.training.bench.match import MATCHES, matched
from titans_jax.training.bench.models import MODELS, SCORES, compare_models, experiments_of, tables
from titans_jax.training.bench.optimizers import compare_optimizers
from titans_jax.training.bench.rows import Rows, machine
from titans_jax.training.bench.rules import compare_rules, default_rules

__all__ = [
    "FORMAL_MODELS",
    "MATCHES",
    "MODELS",
    "SCORES",
    "Rows",
    "compare_formal",
    "compare_models",
    "compare_optimizers",
    "compare_rules",
    "default_rules",
    "experiments_of",
    "machine",
    "matched",
    "tables",
]
