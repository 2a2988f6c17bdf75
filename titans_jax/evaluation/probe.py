"""What memories stored of a fact, and whether its question addresses it.

Twins A and B are texts that differ in the fact's key alone. M_A and M_B are the memories after them. A head's read at x
tells the twins apart by

    d(x, v) = (M_A(x) - M_B(x)) . (v_A - v_B)    v_A, v_B: the values of a token of the fact

    stored:     sum_i d(k_i, v_i) > 0                      over the tokens of the fact; k: their keys in A
    addressed:  sum_i d(q_i, v_i) > 0, and larger          over the tokens of the answer; q: the queries that
                than sum_i d(h_i, v_i)                     predict them; h: queries of as many tokens later on

A memory without the fact has each in half of the texts by chance, and one that does not learn in none.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from numpy.typing import NDArray

from titans_jax.decode import first_state, prefill
from titans_jax.decode.rows import copied
from titans_jax.evaluation.facts import Facts
from titans_jax.evaluation.introspect import watch
from titans_jax.nn import LM
from titans_jax.nn.config import MEMORY_BLOCKS
from titans_jax.nn.layers import l2_normalise
from titans_jax.nn.memory_state import take_snapshot


class Probe(NamedTuple):
    """The share of texts with stored, and with addressed, each [layers, H]; NaN in layers without a memory.

    addressed: None if the fact does not have the answer's tokens.
    """

    stored: NDArray[np.float32]
    addressed: NDArray[np.float32] | None


def can_probe(model: LM) -> bool:
    """Whether the model has memories, all with keys, values and queries that are projections of the block's input."""
    pattern = set(model.config.pattern)
    return pattern <= {"transformer", *MEMORY_BLOCKS} and pattern != {"transformer"}


def probe(model: LM, facts: Facts) -> Probe:
    """Compare the memories after each text and its twin."""
    graphdef, params = nnx.split(watch(model))
    count, fact = facts.answers.shape[1], slice(facts.fact_end)
    start = first_state(*nnx.split(model), len(facts.texts))
    parts = (x[:, : 2 * facts.fact_end + count] for x in (facts.texts, facts.twins))
    own, other = (_vectors(graphdef, params, copied(start), part) for part in parts)
    values = (own.value - other.value)[fact]
    twins = [prefill(model, x)[1] for x in (facts.texts, facts.twins)]

    def difference(at: Array, values: Array) -> Array:
        reads = [_read(model, state, jnp.moveaxis(at, 0, 3)) for state in twins]
        return jnp.einsum("lbhtd,tlbhd->lbh", reads[0] - reads[1], values)

    stored = difference(own.key[fact], values)
    if facts.answer_start is None:
        return Probe(_share(stored, stored > 0), None)
    values = values[facts.answer_start : facts.answer_start + count]
    asked = np.concatenate([np.tile(facts.question, (len(facts.texts), 1)), facts.answers[:, :-1]], 1)
    queries = _vectors(graphdef, params, copied(twins[0]), asked).query[-count:]
    addressed, by_chance = difference(queries, values), difference(own.query[-count:], values)
    return Probe(_share(stored, stored > 0), _share(stored, (addressed > 0) & (addressed > by_chance)))


def _share(known: Array, true: Array) -> NDArray[np.float32]:
    """The share of the texts, from [layers, B, H]; NaN where `known` is."""
    return np.asarray(jnp.where(jnp.isnan(known), jnp.nan, true).mean(1))


@partial(jax.jit, static_argnums=0)
def _vectors(graphdef: Any, params: Any, state: Any, tokens: Array) -> Any:
    """`Remembered` of each token, leaves [T, layers, B, H, D]. tokens: [B, T]."""
    model = nnx.merge(graphdef, params)

    def step(state: Any, token: Array) -> tuple[Any, Any]:
        _, state, found = model(token[:, None], state)
        return state, found.memory

    return lax.scan(step, state, tokens.T)[1]


def _read(model: LM, state: Any, at: Array) -> Array:
    """What the memories of each layer read at [layers, B, H, T, D], NaN for layers without one."""
    reads = jnp.full_like(at, jnp.nan)
    for place, (block, block_state) in enumerate(zip(model.blocks, state.blocks, strict=True)):
        memory = block.parts(block_state)[0]
        if memory is None:
            continue
        graphdef, params = nnx.split(block.memory)

        @jax.vmap
        def read(params: Any, state: Any, q: Array, graphdef: Any = graphdef) -> Array:
            layer = nnx.merge(graphdef, params)
            return layer.retrieve(take_snapshot(layer.rule, state), l2_normalise(q))

        layers = slice(place, None, len(model.blocks))
        reads = reads.at[layers].set(read(params, memory.memory, at[layers]))
    return reads
