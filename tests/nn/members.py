"""The models of the laws of nn: small, with random parameters and every pair of options.

Most interactions are of two options, and each of the thousands of combinations takes seconds to compile. So `MEMBERS`
has every allowed pair of values in some row.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.compiling import QUICK
from titans_jax.nn import LM, CMSConfig, LMState, MemoryConfig, ModelConfig

BATCH, TOKENS, SEGMENT, VOCAB = 2, 40, 8, 32
OPTIONS: dict[str, tuple[Any, ...]] = {
    "block": ("mac", "mag", "mal", "lmm", "transformer", "transformer,mac"),
    "rule": (
        None,
        "titans",
        "gated_deltanet",
        "ttt_mlp",
    ),  # momentum, fresh gradients, an average
    "residual": ("both", "value", "weight", "none"),
    "positions": ("rope", "axial", "learned", "none"),
    "attention": (None, "sliding", "segmented", "full"),
    "channel_keep": (None, False, True),
    "conv": (None, 4, 0),
    "chunk": (None, SEGMENT // 2, SEGMENT),
    "persistent": (3, 0),
}
Pair = frozenset[tuple[str, Any]]


class Subject(NamedTuple):
    """A model as pure functions. call: (tokens, state, reset=None) -> logits, state, info, compiled once per shape."""

    config: ModelConfig
    graphdef: Any
    params: Any
    call: Callable[..., Any]
    start: LMState


def jit(f: Callable[..., Any]) -> Callable[..., Any]:
    """jax.jit with few optimisations, to compile fast."""
    return jax.jit(f, compiler_options=QUICK)


def name_of(path: tuple[Any, ...]) -> str:
    """A parameter's path, such as blocks/0/memory/rate/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def abstract(make: Callable[..., nnx.Module], config: ModelConfig) -> tuple[Any, Any]:
    """The graphdef and the parameter shapes of make(config, rngs=...), without computing anything."""
    graphdefs = []

    def build() -> Any:
        graphdef, params = nnx.split(make(config, rngs=nnx.Rngs(0)))
        graphdefs.append(graphdef)
        return params

    shapes = jax.eval_shape(build)
    return graphdefs[0], shapes


def random_params(shapes: Any) -> Any:
    """Random parameters of the initial ones' size, without their zeros and ones."""
    rng = np.random.default_rng(0)

    def one(path: tuple[Any, ...], x: Any) -> np.ndarray:
        name, noise = name_of(path), rng.normal(size=x.shape)
        last = name.rpartition("/")[2]
        if "fast" in name or last == "kernel":
            added = "/out/" in name or "/down/" in name  # output projections have an initial scale of (2 depth) ** -0.5
            value = noise * x.shape[-2] ** -0.5 * (0.5 if added else 1.0)
        elif last == "taps":
            value = 0.3 * noise + (np.arange(x.shape[-2]) == 0)[:, None]
        elif last == "embedding":
            value = noise * x.shape[-1] ** -0.5
        else:
            forgets = name.endswith("keep/bias")
            value = 0.2 * noise + (last == "scale") + forgets * np.log(1 / MemoryConfig().forget - 1)
        return value.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def layer_of(make: Callable[..., nnx.Module], config: ModelConfig) -> Any:
    graphdef, shapes = abstract(make, config)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_params(shapes)))


def subject(config: ModelConfig, make: Callable[..., nnx.Module] = LM) -> Subject:
    """Make a Subject. Keep few at a time: a process has room for some thousand compiled programs."""
    graphdef, shapes = abstract(make, config)
    params = random_params(shapes)
    # aligned: the tests read a text from its start, or pieces of 1 and 13 tokens, which no chunk divides
    run = jit(lambda params, *arguments: nnx.merge(graphdef, params)(*arguments, aligned=True))
    begin = jit(lambda params: nnx.merge(graphdef, params).init_state(BATCH))
    return Subject(config, graphdef, params, functools.partial(run, params), begin(params))


def config_of(row: dict[str, Any], **changes: Any) -> ModelConfig:
    """The configuration of a row of options; None is the default."""
    row = {key: value for key, value in row.items() if value is not None}
    fields = ("rule", "channel_keep", "conv", "chunk", "max_rate", "shard", "local_chunks", "matmul_dtype")
    memory = {key: row.pop(key) for key in fields if key in row}
    residual = row.pop("residual", "none")
    cms = {"periods": (SEGMENT, 2 * SEGMENT)} | row.pop("cms", {})
    return ModelConfig(
        **dict(
            dim=16,
            depth=2,
            heads=3,
            head_dim=6,
            window=SEGMENT,
            segment=SEGMENT,
            context=320,
            vocab_size=VOCAB,
            value_residual=residual in ("value", "both"),
            weight_residual=residual in ("weight", "both"),
            cms=CMSConfig(**cms),
            memory=MemoryConfig(**dict(chunk=SEGMENT, heads=2, head_dim=32) | memory),
        )
        | row
        | changes
    )


def allowed(pair: Pair) -> bool:
    """Whether two options may be in one row: the model accepts them, and both have an effect."""
    row = dict(pair)
    if len(row) < len(pair):
        return False
    block, rule, residual = row.get("block"), row.get("rule"), row.get("residual")
    weight, value = residual in ("weight", "both"), residual in ("value", "both")
    if block is not None:
        for key in ("rule", "channel_keep", "conv", "chunk"):
            if key in row and (row[key] is None) != (block == "transformer"):
                return False
        if "attention" in row and (row["attention"] is None) != (block in ("mac", "lmm")):
            return False
        if (block == "transformer" and weight) or (block == "lmm" and (value or row.get("positions") == "rope")):
            return False
    if weight and "rule" in row and rule not in ("titans", "ttt_mlp"):
        return False
    memory = [row[key] is None for key in ("rule", "channel_keep", "conv", "chunk") if key in row]
    return len(set(memory)) < 2


def covering() -> Iterator[dict[str, Any]]:
    """Rows that contain every allowed pair of values: each starts from a missing pair and adds the most others."""
    values = [(key, value) for key, choices in OPTIONS.items() for value in choices]
    pairs = (frozenset(pair) for pair in itertools.combinations(values, 2))
    missing = {pair: None for pair in pairs if None not in dict(pair).values() and allowed(pair)}

    def fits(item: tuple[str, Any], row: dict[str, Any]) -> bool:
        return all(allowed(frozenset([item, other])) for other in row.items())

    while missing:
        row = dict(next(iter(missing)))
        for key in (key for key in OPTIONS if key not in row):
            items = [(key, value) for value in OPTIONS[key] if fits((key, value), row)]
            news = [sum(frozenset([item, other]) in missing for other in row.items()) for item in items]
            row[key] = items[news.index(max(news))][1]
        for pair in itertools.combinations(row.items(), 2):
            missing.pop(frozenset(pair), None)
        yield {key: row[key] for key in OPTIONS}


def label(row: dict[str, Any]) -> str:
    return "-".join(str(value) for value in row.values() if value is not None)


MEMBERS = list(covering())


def few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Few of the rows that contain every value of every option, chosen greedily."""
    chosen, missing = [], {item for row in rows for item in row.items()}
    while missing:
        best = max(rows, key=lambda row: len(missing & row.items()))
        missing -= best.items()
        chosen.append(best)
    return chosen


FEW = few(MEMBERS)
