"""Sampling, and generation that must not depend on how the prompt was cut or on the rows beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.decode import Sampling, Text, draw, generate, keep_min_p, keep_top_k, keep_top_p, prefill
from titans_jax.nn import LM, MemoryConfig, ModelConfig
from titans_jax.training import define

VOCABULARY = 32


@pytest.fixture(scope="module")
def model() -> LM:
    memory = MemoryConfig(heads=1, head_dim=8, expansion=2, chunk=8)
    config = ModelConfig(block="lmm", vocab_size=VOCABULARY, dim=16, depth=1, persistent=1, memory=memory)
    definition = define(config)
    params = jax.jit(definition.init)(jax.random.key(0))
    # Larger than at the start of training, so that the likeliest token is not decided by rounding.
    return definition.model(jax.tree.map(lambda x: x * 1.5 if x.ndim > 1 else x, params))


@pytest.fixture(scope="module")
def at_once(model):
    """Two rows of tokens read in one call: logits, state."""
    return jax.jit(lambda tokens: model(tokens, model.init_state(2))[:2])


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype(np.int32)


@pytest.mark.parametrize("k", [1, 3, 10, 99])
def test_top_k_keeps_the_k_largest(k):
    logits = np.random.default_rng(k).normal(size=(4, 10)).astype(np.float32)
    kept = np.isfinite(keep_top_k(jnp.array(logits), k))
    for row, mask in zip(logits, kept, strict=True):
        assert set(np.flatnonzero(mask)) == set(np.argsort(-row)[:k])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.7, 0.95, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = np.random.default_rng(1).normal(size=(6, 12)).astype(np.float32) * 2
    kept = np.isfinite(keep_top_p(jnp.array(logits), p))
    for row, mask in zip(logits.astype(np.float64), kept, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        order = np.argsort(-probabilities)
        count = 1 + int((np.cumsum(probabilities[order])[:-1] < p - 1e-7).sum())
        assert set(np.flatnonzero(mask)) == set(order[:count])


def test_top_p_takes_one_of_equals_only():
    assert np.isfinite(keep_top_p(jnp.zeros((1, 4)), 0.25)).sum() == 1


@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_min_p_keeps_what_is_near_the_likeliest(p):
    logits = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = probabilities >= p * probabilities.max(-1, keepdims=True) * (1 - 1e-6)
    np.testing.assert_array_equal(np.isfinite(keep_min_p(jnp.array(logits), p)), expected)


def test_draws_follow_the_distribution_after_temperature_and_filters():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = draw(jnp.tile(logits, (len(keys), 1)), keys, Sampling(temperature=0.5, top_k=3))
    expected = np.array([0.5, 0.25, 0.15, 0.0]) ** 2
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(keys), expected / expected.sum(), atol=0.01)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 0.0}])
def test_sampling_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_greedy_decode_is_the_argmax_of_one_teacher_forced_call(model, at_once):
    prompt = tokens(2, 11)
    written = generate(model, prompt, length=20, temperature=0, segment=8)
    whole = np.concatenate([prompt, written], axis=1)
    logits, _ = at_once(whole)
    np.testing.assert_array_equal(written, np.argmax(logits, -1)[:, 10:-1])


def test_a_prompt_read_in_segments_is_the_prompt_read_at_once(model, at_once):
    prompt = tokens(2, 31, seed=3)
    logits, state = prefill(model, prompt, segment=8)
    whole, expected = at_once(prompt)
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state, expected)


def test_rows_of_unequal_length_are_written_as_if_alone(model):
    prompts = [tokens(9, seed=4), tokens(3, seed=5), tokens(9, seed=6)]
    key = jax.random.key(7)
    together = generate(model, prompts, length=6, key=key)
    assert [len(row) for row in together] == [6, 6, 6]
    for i, prompt in enumerate(prompts):
        others = [tokens(5, seed=40 + j) for j in range(i)]  # row i draws from the key's i-th child
        alone = generate(model, [*others, prompt], length=6, key=key)[i]
        np.testing.assert_array_equal(together[i], alone)


def test_a_seed_decides_the_sample(model):
    prompt = tokens(1, 5)
    first, again, other = (generate(model, prompt, length=12, key=jax.random.key(k), segment=8) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_stop_ends_a_row_and_leaves_the_others(model):
    prompt = tokens(2, 5, seed=8)
    free = generate(model, prompt, length=8, temperature=0, segment=8)
    heard = []

    def stop(row: int, token: int) -> bool:
        heard.append((row, token))
        return row == 1 and len([r for r, _ in heard if r == 1]) == 3

    written = generate(model, prompt, length=8, temperature=0, segment=8, stop=stop)
    np.testing.assert_array_equal(written[0], free[0])
    np.testing.assert_array_equal(written[1], [*free[1][:3], -1, -1, -1, -1, -1])
    assert [token for row, token in heard if row == 1] == free[1][:3].tolist()
    assert len(generate(model, list(prompt), length=8, temperature=0, segment=8, stop=lambda *_: True)[0]) == 1


def test_what_cannot_be_generated_is_refused(model):
    with pytest.raises(ValueError, match="at least one row and one token"):
        generate(model, np.zeros((1, 0), np.int32), length=1, temperature=0)
    with pytest.raises(ValueError, match=f"token {VOCABULARY}, outside"):
        generate(model, [[VOCABULARY]], length=1, temperature=0)
    with pytest.raises(ValueError, match="needs a key"):
        generate(model, [[1]], length=1)
    with pytest.raises(ValueError, match="length is -1"):
        generate(model, [[1]], length=-1, temperature=0)


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_text_hands_on_every_letter_once(stop):
    source = "naïve — “quoted” 🐋 end"
    text = Text(lambda ids: bytes(ids).decode(errors="replace"), stop)
    pieces = [text.add(byte) for byte in source.encode()]
    pieces.append(text.finish())
    assert "".join(pieces) == text.shown == source
    assert "\ufffd" not in "".join(pieces)


def test_text_ends_before_the_first_stop_text_and_never_shows_a_part_of_it():
    text = Text(lambda ids: bytes(ids).decode(errors="replace"), ("END", "ENDING", "E."))
    shown = ""
    for byte in b"the EN of the END of it":
        shown += text.add(byte)
        assert "END" not in shown
        if text.ended:
            break
    assert shown + text.finish() == text.shown == "the EN of the "


def test_text_that_is_no_utf8_comes_through():
    text = Text(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [text.add(byte) for byte in b"\xff\xff\xff\xff\xffok"]
    assert "".join(pieces) + text.finish() == "\ufffd" * 5 + "ok"
