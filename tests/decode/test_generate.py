"""Generation: it must not depend on how the prompt was cut or on the rows beside it."""

import jax
import numpy as np
import pytest

from tests.nn.members import jit, layer_of
from titans_jax.decode import Sampling, generate, prefill, stream
from titans_jax.nn import LM, MemoryConfig, ModelConfig

VOCABULARY = 32


@pytest.fixture(scope="module")
def model() -> LM:
    memory = MemoryConfig(rule="titans_linear", heads=1, head_dim=8, chunk=8, conv=2)
    return layer_of(LM, ModelConfig(block="lmm", vocab_size=VOCABULARY, dim=16, depth=1, persistent=1, memory=memory))


@pytest.fixture(scope="module")
def at_once(model):
    """Two rows of tokens read in one call: logits, state."""
    return jit(lambda tokens: model(tokens, model.init_state(2))[:2])


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype(np.int32)


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
    together = generate(model, prompts, length=6, key=key, slots=2)
    assert [len(row) for row in together] == [6, 6, 6]
    for i, prompt in enumerate(prompts):
        others = [tokens(5, seed=40 + j) for j in range(i)]  # row i draws from the key's i-th child
        alone = generate(model, [*others, prompt], length=6, key=key, slots=1)[i]
        np.testing.assert_array_equal(together[i], alone)


def test_rows_in_step_are_written_as_slots_write_them(model):
    prompt, key = tokens(2, 11, seed=3), jax.random.key(2)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(2))
    following = stream(model, prompt, Sampling(0.9, top_k=9), keys=keys, segment=8)
    rows = np.stack([next(following) for _ in range(8)], 1)
    np.testing.assert_array_equal(rows, generate(model, prompt, length=8, temperature=0.9, top_k=9, key=key, segment=8))


def test_a_seed_decides_the_sample(model):
    prompt = tokens(1, 5)
    first, again, other = (generate(model, prompt, length=12, key=jax.random.key(k), slots=1) for k in (0, 0, 1))
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
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, np.zeros((1, 0), np.int32), length=1, temperature=0)
    with pytest.raises(ValueError, match="at least one row and one token"):
        prefill(model, np.zeros((1, 0), np.int32))
    with pytest.raises(ValueError, match=f"token {VOCABULARY}, outside"):
        generate(model, [[VOCABULARY]], length=1, temperature=0)
    with pytest.raises(ValueError, match="needs a key"):
        generate(model, [[1]], length=1)
    with pytest.raises(ValueError, match="length is -1"):
        generate(model, [[1]], length=-1, temperature=0)
