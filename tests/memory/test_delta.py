"""Decay by a matrix: the identity with Gated DeltaNet, what it erases, and what it refuses."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close
from tests.memory.situations import CHUNK, DIM
from tests.oracles import delta
from titans_jax.memory import Gates, miras, presets


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sequence(tokens: int = 14):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, tokens, DIM))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    rate, keep = rng.uniform(0, 0.4, tokens), rng.uniform(0.7, 1.0, tokens)
    return q, k, v, Gates(rate, np.ones(tokens), keep), rng.normal(size=(DIM, DIM))


def test_the_linear_case_is_gated_deltanet():
    """Eq 93: beta = rate / keep, v' = keep (v - k M_anchor)."""
    q, k, v, gates, M = sequence(12)
    memory = miras(presets.dgd_linear(DIM), chunk=CHUNK, clip=None)
    y, state, _ = jax.jit(memory.update, compiler_options=QUICK)(memory.init({"w": M}), q, k, v, gates)
    other = miras(presets.gated_deltanet(DIM), chunk=CHUNK, clip=None)
    update, carried, ys = jax.jit(other.update, compiler_options=QUICK), other.init({"w": M}), []
    for at in range(0, 12, CHUNK):
        rows = slice(at, at + CHUNK)
        beta, keep = gates.rate[rows] / gates.keep[rows], gates.keep[rows]
        value = keep[:, None] * (v[rows] - k[rows] @ np.asarray(carried.dual["w"]))
        y1, carried, _ = update(carried, q[rows], k[rows], value, Gates(beta, np.ones(CHUNK), keep))
        ys.append(y1)
    close((y, state.dual), (np.concatenate(ys), carried.dual), 1e-12)


def test_a_write_at_rate_one_erases_what_was_under_its_key():
    """Only the error at the chunk start is written: after a second write of one key in a chunk, the first is gone."""
    rule = presets.dgd_linear(DIM)
    memory, rng = miras(rule, chunk=4, clip=None), np.random.default_rng(1)
    k = np.tile(np.eye(DIM)[0], (2, 1))
    v = rng.normal(size=(2, DIM))
    ones = np.ones(2)
    y, _, _ = memory.update(memory.init({"w": np.zeros((DIM, DIM))}), k, k, v, Gates(ones, ones, ones))
    close(y, v, 1e-12)


@pytest.mark.parametrize("implementation", [None, "delta", "recurrent"])
def test_a_network_whose_input_matrices_are_not_known_is_refused(implementation):
    network = presets.dgd(DIM).architecture._replace(channels={})
    with pytest.raises(NotImplementedError, match="no matrix is known to read the key"):
        miras(presets.dgd(DIM)._replace(architecture=network), chunk=CHUNK, implementation=implementation)


def test_hand_gradient_is_a_slope():
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(DIM, 8)), "w2": rng.normal(size=(8, DIM))}
    x, target = rng.normal(size=(2, DIM))
    got = delta.gradient(weights, x, target)
    for name, w in weights.items():
        for i in np.ndindex(w.shape):
            ends = []
            for h in (1e-6, -1e-6):
                other = weights | {name: w.copy()}
                other[name][i] += h
                ends.append(((delta.network(other, x) - target) ** 2).sum() / 2)
            assert abs((ends[0] - ends[1]) / 2e-6 - got[name][i]) < 1e-7
