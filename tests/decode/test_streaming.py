"""A stream as a value: the same scores however it is cut, honest ones, and forks that know nothing of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.members import jit, layer_of
from titans_jax.decode import streaming
from titans_jax.nn import LM, MemoryConfig, ModelConfig
from titans_jax.training import define

VOCABULARY, SEPARATOR = 32, 31


@pytest.fixture(scope="module")
def model() -> LM:
    memory = MemoryConfig(rule="titans_linear", heads=1, head_dim=8, chunk=8, conv=0)
    config = ModelConfig(block="lmm", vocab_size=VOCABULARY, dim=16, depth=2, persistent=0, memory=memory)
    return layer_of(LM, config)


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY - 1, (1, length)).astype(np.int32)


def test_scores_are_of_what_one_call_of_the_model_predicts_before_each_token(model):
    tokens = text(24)
    inputs = np.concatenate([[[SEPARATOR]], tokens[:, :-1]], 1)
    logits, after, look = jit(lambda x: model(x, model.init_state(1)))(inputs)
    state, scores = streaming.read(model, streaming.init(model, SEPARATOR), tokens)
    likely = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(scores.nll[0], -likely[0, np.arange(24), tokens[0]], rtol=1e-5)
    np.testing.assert_array_equal(scores.correct[0], likely[0].argmax(-1) == tokens[0])
    np.testing.assert_allclose(scores.surprise, np.asarray(look.surprise).mean(2), rtol=1e-5)
    assert scores.surprise.shape == (2, 1, 24)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.model, after)
    assert state.last.tolist() == [tokens[0, -1]]


def test_a_text_may_be_cut_anywhere(model):
    tokens = text(24, seed=1)
    _, whole = streaming.read(model, streaming.init(model, SEPARATOR), tokens)
    state, parts = streaming.init(model, SEPARATOR), []
    for at in range(18):
        state, scores = streaming.read(model, state, tokens[:, at : at + 1])
        parts.append(scores.nll)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole.nll[:, :18], atol=1e-4)


def test_a_token_changes_no_score_but_its_own_and_later_ones(model):
    tokens, other = text(24, seed=2), text(24, seed=2)
    other[0, 10] = (other[0, 10] + 1) % VOCABULARY
    one, two = (streaming.read(model, streaming.init(model, SEPARATOR), x)[1] for x in (tokens, other))
    np.testing.assert_array_equal(one.nll[:, :10], two.nll[:, :10])
    assert (np.asarray(one.nll[:, 10:12]) != two.nll[:, 10:12]).all()
    # as it is scored, nothing has been surprised by it yet
    np.testing.assert_array_equal(one.surprise[..., :11], two.surprise[..., :11])
    assert (np.asarray(one.surprise[..., 11]) != two.surprise[..., 11]).all()


def test_forks_do_not_know_of_each_other(model):
    start, _ = streaming.read(model, streaming.init(model, SEPARATOR), text(24, seed=3))
    kept = jax.device_get(start)
    other = streaming.fork(start)
    one, _ = streaming.read(model, streaming.fork(start), text(24, seed=4))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(other), kept)
    _, found = streaming.read(model, one, text(24, seed=5))
    again, _ = streaming.read(model, start, text(24, seed=4))
    jax.block_until_ready(streaming.read(model, other, text(24, seed=6)))
    _, expected = streaming.read(model, again, text(24, seed=5))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_model_that_holds_all_of_its_context_is_refused():
    config = ModelConfig(block="transformer", dim=8, depth=1, heads=1, head_dim=8, attention="full", context=16)
    definition = define(config)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), definition.shapes)
    with pytest.raises(ValueError, match="model.context = 16 tokens, and a stream has no end"):
        streaming.init(definition.model(params), SEPARATOR)
