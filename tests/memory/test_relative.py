"""Relative reads, y_t = M(W_t; q_t) - M(W_0; q_t): M(W_0; q_t) is what a memory reads that writes nothing."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.tolerance import close
from titans_jax.memory import Gates, Memory, Reset, Rule, miras, presets
from titans_jax.memory.chunk_end import new_stream
from titans_jax.memory.tnt import tnt, tnt_new_stream, tnt_weights

DIM, CHUNK, TOKENS = 4, 4, 14
RULES = {  # an engine, link or learner each
    "titans": presets.titans(DIM, expansion=2),
    "titans_to_origin": presets.titans(DIM, expansion=2, to_origin=True),
    "memora": presets.memora(DIM),
    "deltanet": presets.deltanet(DIM),
    "dgd": presets.dgd(DIM, expansion=2, to_origin=True),
    "swla": presets.swla(DIM),
}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def made(rule: Rule, local: bool) -> Memory:
    return tnt(rule, chunk=8, local_chunks=(2, 4), shard=4) if local else miras(rule, chunk=CHUNK)


def update(memory: Memory) -> Any:
    return jax.jit(memory.update, compiler_options=QUICK)


@pytest.mark.parametrize(
    ("name", "local"),
    [*((name, False) for name in RULES), ("titans", True), ("titans_to_origin", True)],
    ids=lambda x: x if isinstance(x, str) else "tnt" * x,
)
def test_reads_are_less_what_the_first_weights_read(name: str, local: bool) -> None:
    """Also in pieces, after a reset, without a write, and in a new stream."""
    rule, rng = RULES[name], np.random.default_rng(0)
    relative = rule._replace(relative=True)
    key = jax.random.key(0)
    weights = tnt_weights(rule, key, 2) if local else rule.architecture.init(key)
    weights = jax.tree.map(lambda w: np.asarray(w) + 0.1 * rng.uniform(size=w.shape), weights)
    q, k, v = rng.normal(size=(3, TOKENS, DIM))
    gates = Gates(*rng.uniform([[0.0], [0.0], [0.8]], [[0.3], [0.9], [1.0]], (3, TOKENS)))
    nothing = Gates(np.zeros(TOKENS), np.zeros(TOKENS), np.ones(TOKENS))
    mask = np.arange(TOKENS) == 8
    plain, other = made(rule, local), made(relative, local)
    fresh = Reset(mask, plain.init(weights)), Reset(mask, other.init(weights))
    first = update(plain)(plain.init(weights), q, k, v, nothing, reset=fresh[0])[0]
    y, _, info = update(plain)(plain.init(weights), q, k, v, gates, reset=fresh[0])
    out, after, observed = update(other)(other.init(weights), q, k, v, gates, reset=fresh[1])
    close(out, y - first, 1e-9, "reads: ")
    assert np.abs(first).min(1).max() > 1e-3
    close(observed, info, 1e-9, "info: ")

    pieces, state = [], other.init(weights)
    for a, b in ((0, 5), (5, 6), (6, TOKENS)):
        piece = jax.tree.map(lambda x, a=a, b=b: x[a:b], (q, k, v, gates))
        y_piece, state, _ = update(other)(state, *piece, reset=fresh[1]._replace(mask=mask[a:b]))
        pieces.append(y_piece)
    close(np.concatenate(pieces), out, 1e-9, "pieces: ")
    if not local:
        close(other.read(after, q), plain.read(after._replace(initial=None), q) - first, 1e-9, "read: ")
    restarted = (tnt_new_stream if local else new_stream)(relative, after)
    close(update(other)(restarted, q, k, v, nothing)[0], np.zeros_like(q), 1e-9, "a new stream: ")
