"""`unit_rate`: how large a step may be."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.memory import PRESETS, Architecture, Gates, Rule, architecture, miras, presets, unit_rate
from titans_jax.memory.types import dense

NETWORKS: dict[str, Callable[[int], Architecture]] = {
    "linear": architecture.linear,
    "mlp": architecture.mlp,
    "mlp, depth 1": lambda dim: architecture.mlp(dim, depth=1),
    "mlp, depth 3": lambda dim: architecture.mlp(dim, depth=3),
    "mlp, expansion 2": lambda dim: architecture.mlp(dim, expansion=2),
    "gated": architecture.gated,
    "biased, depth 1": lambda dim: architecture.biased(architecture.mlp(dim, depth=1)),
    "biased": lambda dim: architecture.biased(architecture.mlp(dim)),
    "residual": architecture.residual,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gain_is_how_far_weights_move_the_output(name: str) -> None:
    """Within a factor of 2, at initial weights and an input of unit length."""
    dim = 24
    network = NETWORKS[name](dim)

    @jax.jit
    def gain(key: jax.Array) -> jax.Array:
        x = jnp.abs(jax.random.normal(key, (1, dim)))
        jacobian = jax.jacrev(lambda w: network.apply(dense(w), x / jnp.linalg.norm(x))[0])(network.init(key))
        J = jnp.concatenate([leaf.reshape(dim, -1) for leaf in jax.tree.leaves(jacobian)], 1)
        return jnp.linalg.eigvalsh(J @ J.T)[-1]

    seen = np.mean([gain(jax.random.key(seed)) for seed in range(4)])
    assert 0.5 < seen / network.gain < 2


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_of_a_normed_network_is_bounded_by_its_norm(name: str) -> None:
    dim = 24
    network = NETWORKS[name](dim)
    x = jax.random.normal(jax.random.key(0), (5, dim))
    weights = jax.tree.map(lambda w: 1e3 * (w + 1), network.init(jax.random.key(1)))
    largest = float(jnp.linalg.norm(network.apply(dense(weights), x) - x, axis=-1).max())
    assert (largest <= 1.001 * dim**0.5) == network.normed


def same_token_again(rule: Rule, rate: float, chunks: int, momentum: float = 0.0, writes: int = 8) -> np.ndarray:
    """The surprise at the start of each chunk of 8, of one token read over and over. The first ones are written."""
    chunk = 8
    tokens = chunk * chunks
    k, v = jax.random.normal(jax.random.key(1), (2, 1, 16)).repeat(tokens, 1)
    k /= jnp.linalg.norm(k[0])
    written = jnp.arange(tokens) % chunk < writes
    window = rule.learner.window > 1  # whose rates count where a token is written again
    q, rates = k, jnp.where(written | window, rate, 0.0)
    if (m := rule.learner.writes_per_token) > 1:
        k, v, rates = (jnp.repeat(x[:, None], m, 1) for x in (k, v, rates))
    gates = Gates(rates, jnp.full(tokens, momentum), jnp.ones(tokens), weight=written.astype(float) if window else None)
    memory = miras(rule, chunk=chunk, clip=None)
    state = memory.init(rule.architecture.init(jax.random.key(0)))
    return np.asarray(jax.jit(memory.update)(state, q, k, v, gates)[2].surprise[::chunk])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_matrix_learns_a_chunk_of_one_token_in_one_go(momentum: float) -> None:
    rule = presets.titans_linear(16)
    first, second, *_ = same_token_again(rule, unit_rate(rule, 8, momentum), 2, momentum)
    assert first > 1
    if momentum == 0:
        assert second < 1e-10
    else:
        assert second < 1e-2 * first


@pytest.mark.parametrize("name", ["titans", "moneta", "ttt_mlp", "omeganet", "deltanet"])
def test_one_token_is_mostly_learned_at_the_unit_of_one(name: str) -> None:
    """Moneta's weights move by a twentieth of their duals, TTT writes means, OmegaNet writes each token four times."""
    rule = PRESETS[name](16)
    before, after = same_token_again(rule, unit_rate(rule, 8, equal=1), 2, writes=1)
    assert after < 0.5 * before


# "delta_decay" is left out: it subtracts what was there twice, and comes half the way
RULES = {name: PRESETS[name](16) for name in PRESETS}
CORRECTING = [name for name, rule in RULES.items() if rule.bias.curvature and rule.learner.grad_at != "delta_decay"]
FEW = ("titans", "moneta", "deltanet")  # each compiles its own


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in CORRECTING])
def test_every_rule_comes_closer_with_each_chunk_at_its_unit_rate(name: str) -> None:
    rule = RULES[name]
    seen = same_token_again(rule, unit_rate(rule, 8), 12)
    assert seen[-1] < 0.3 * seen[0]  # robust losses take steps of one length
    assert np.diff(seen).max() < 1e-3 * seen[0]


def test_a_window_writes_each_token_as_often_as_it_is_wide() -> None:
    rule = presets.omeganet(16, window=4)
    assert unit_rate(rule, 1) == pytest.approx(unit_rate(rule, 8, equal=1))
    assert unit_rate(rule, 8) == pytest.approx(unit_rate(rule, 1) / 8)


def test_a_matrix_that_corrects_nothing_takes_whole_steps() -> None:
    assert unit_rate(presets.linear_attention(16), 8) == 1
