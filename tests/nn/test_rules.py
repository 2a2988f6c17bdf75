"""Layers of rules: initial keys and queries; and gradients and streams of those with more than q, k, v, three gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import BATCH, VOCAB, config_of, jit, name_of, subject
from tests.nn.test_laws import TOKENS, close, in_pieces, read, tokens
from titans_jax.nn.layers import RMSNorm, l2_normalise
from titans_jax.nn.memory_inputs import QKV


@pytest.mark.parametrize("rule", ["titans", "deltaproduct"])
def test_a_key_starts_close_to_the_query_of_the_token_before(rule: str) -> None:
    """So an untrained memory answers a token with the value of the token after it."""
    config = config_of({"rule": rule, "conv": 4})
    qkv = QKV(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, config.dim))
    (q, k, v), _ = qkv(x, qkv.init_state(BATCH), jnp.broadcast_to(jnp.arange(TOKENS), (BATCH, TOKENS)))
    first = k if rule == "titans" else k[..., 0, :]
    likeness = {step: np.mean(cosine(first[:, :, 4:], q[:, :, 4 - step : TOKENS - step])) for step in range(4)}
    assert likeness[1] > 0.95 and all(likeness[step] < 0.8 for step in (0, 2, 3)), likeness
    assert np.asarray(jnp.linalg.norm(first[:, :, 0], axis=-1) > 0).all()
    assert np.asarray(v[:, :, 1:] != v[:, :, :-1]).any()


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """The cosine of the angle of each pair of rows."""
    return jnp.vecdot(l2_normalise(x), l2_normalise(y))


@pytest.mark.parametrize("normalise", [l2_normalise, RMSNorm(4)])
def test_a_row_of_zeros_is_normalised_to_zeros_and_has_no_gradient(normalise) -> None:
    """The reads of a memory that has learned nothing are such rows."""
    x = jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    y, pull = jax.vjp(normalise, x)
    (gradient,) = pull(jnp.array([1.0, 2.0, 3.0, 5.0]) * jnp.ones((2, 1)))
    assert (y[0] == 0).all() and (gradient[0] == 0).all() and (gradient[1] != 0).all()


RULES = ("swla", "deltaproduct", "mesa", "omeganet", "atlas", "lact", "hgrn2")


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_any_split_agrees_and_every_gate_has_a_gradient(rule: str) -> None:
    model = subject(config_of({"block": "lmm", "rule": rule, "chunk": 4}, depth=1))
    text = tokens()
    want, state = read(model, text)
    got, carried = in_pieces(model, text, [13, 13, TOKENS - 26])
    close((got, carried), (want, state), 6e-4)  # three times what is seen, by atlas: see TOLERANCE in test_miras

    @jit
    def gradient(params):
        def objective(params):
            logits, _, _ = nnx.merge(model.graphdef, params)(text, model.start)
            return (logits * np.random.default_rng(0).normal(size=(BATCH, TOKENS, VOCAB))).sum()

        return jax.grad(objective)(params)

    unread = {"deltaproduct": "momentum", "swla": "momentum", "mesa": "momentum", "omeganet": "momentum"}
    unread |= {"hgrn2": "momentum rate", "atlas": "", "lact": ""}
    for path, g in jax.tree_util.tree_leaves_with_path(gradient(model.params)):
        name = name_of(path)
        if any(f"/{gate}/" in name for gate in ("rate", "momentum", "keep", "weight")):
            idle = any(f"/{gate}/" in name for gate in unread[rule].split())
            assert (np.abs(g) > 0).all() != idle, name
