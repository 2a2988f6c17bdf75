"""Needles in haystacks: what is asked is what was said, and a score is what the model would say."""

import dataclasses

import jax
import numpy as np
import pytest

from titans_jax.data import BYTES, train_bpe
from titans_jax.decode import generate
from titans_jax.evaluation import Hay, Needle, TargetScores, find_needles, score_targets
from titans_jax.evaluation.haystack import row_size
from titans_jax.evaluation.loglikelihood import no_room
from titans_jax.nn import ModelConfig
from titans_jax.training import define

CONFIG = ModelConfig(block="transformer", dim=16, depth=1, heads=1, head_dim=8, persistent=0, window=16, context=48)
NEEDLE = Needle("KEY {key}!", "KEY?", " {key}", digits=2)


def made(config):
    definition = define(config)
    return definition.model(jax.jit(definition.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def model():
    return made(CONFIG)


def test_a_score_is_what_one_call_and_greedy_decoding_say(model):
    tokens = np.array(jax.random.randint(jax.random.key(1), (3, 41), 0, 256))
    mask = np.zeros((3, 40))
    mask[0, 30:34] = mask[1, 38:] = 1
    tokens[0, 31:35] = generate(model, tokens[:1, :31], length=4, temperature=0, segment=10)[0]
    logits = jax.jit(lambda model, tokens: model(tokens, model.init_state(3))[0])(model, tokens[:, :-1])
    each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, 1:, None], -1)[..., 0]
    for segment in (512, 10):
        scores = score_targets(model, tokens[:, :-1], tokens[:, 1:], mask, segment=segment)
        np.testing.assert_allclose(scores.log_likelihood, (each * mask).sum(1), rtol=1e-5)
        assert scores.tokens.tolist() == [4, 2, 0] and scores.correct[0] == 4
        assert scores.exact.tolist() == [True, False, True]  # the last has nothing to get wrong


def test_a_row_hides_the_needle_at_its_depth_and_asks_at_its_end():
    hay = Hay(["one two three", "four five six seven eight nine ten"], BYTES)
    rng = np.random.default_rng(0)
    for length in (40, 300):
        places = []
        for depth in (0, 0.5, 1):
            row, answer = hay.row(NEEDLE.filled(np.random.default_rng(5)), length, depth, np.random.default_rng(1))
            text = bytes(row[1:].astype(np.uint8)).decode()
            assert row[0] == BYTES.separator and len(row) == length + answer and answer == 3
            key = text[-2:]
            assert text.endswith(f"\nKEY? {key}") and text.count(f"KEY {key}! ") == 1
            places.append(text.index("KEY ") / (length - 10 - 6))
            before = text[: text.index("KEY ")]
            assert not before or before[-1] in " \n"  # after a word
            assert set(before.split()) <= set("one two three four five six seven eight nine ten".split())
        assert places[0] == 0 and abs(places[1] - 0.5) < 0.2 and places[2] > 0.9
    keys = {NEEDLE.filled(rng).answer for _ in range(20)}
    assert len(keys) > 10 and all(len(key) == 3 for key in keys)
    with pytest.raises(ValueError, match="a length of 12 tokens has no room for needle and question; give at least 14"):
        hay.row(NEEDLE.filled(rng), 12, 0.5, rng)


def test_the_length_is_in_tokens_of_the_tokenizer(tmp_path):
    text = "the whale and the sea and the ship and the whale again " * 20
    tokenizer = train_bpe([text], 280, tmp_path / "bpe.json")
    row, answer = Hay([text], tokenizer).row(
        NEEDLE.filled(np.random.default_rng(0)), 200, 0.5, np.random.default_rng(0)
    )
    assert len(row) == 200 + answer and len(tokenizer.decode(row)) > 300
    assert "KEY " in tokenizer.decode(row) and tokenizer.decode(row[-answer:]).strip().isdigit()


def test_each_cell_is_of_its_depth(model, monkeypatch):
    def right_when_near(model, inputs, targets, mask, *, segment=512, on_tokens=lambda count: None):
        on_tokens(inputs.size)
        texts = [bytes(line.astype(np.uint8)) for line in inputs[:, 1:]]
        near = np.array([len(text) - text.index(b"KEY ") < 60 for text in texts])
        counted = mask.sum(1).astype(int)
        return TargetScores(np.where(near, -1.0, -9.0), np.where(near, counted, 1), counted)

    monkeypatch.setattr("titans_jax.evaluation.haystack.score_targets", right_when_near)
    read = []
    cells = find_needles(
        model, Hay(["hay hay hay"], BYTES), NEEDLE, length=100, depths=[0, 0.9], samples=3, on_tokens=read.append
    )
    assert cells == [
        {"depth": 0.0, "exact": 0.0, "accuracy": pytest.approx(1 / 3), "log_likelihood": -9.0, "samples": 3},
        {"depth": 0.9, "exact": 1.0, "accuracy": 1.0, "log_likelihood": -1.0, "samples": 3},
    ]
    assert sum(read) == 6 * 102


def test_rows_of_a_seed_are_the_same_and_every_depth_has_the_same_keys(model):
    hay = Hay(["hay hay hay"], BYTES)
    arguments = dict(length=48, depths=[0, 1], samples=2)
    cells = find_needles(model, hay, NEEDLE, **arguments)
    assert (
        cells == find_needles(model, hay, NEEDLE, **arguments) != find_needles(model, hay, NEEDLE, **arguments, seed=1)
    )
    assert all(-40 < cell["log_likelihood"] < -5 for cell in cells)


def test_full_attention_refuses_what_it_has_no_room_for():
    model = made(dataclasses.replace(CONFIG, attention="full"))
    hay = Hay(["hay"], BYTES)
    sizes = [row_size(hay, NEEDLE, length) for length in (46, 47)]
    assert sizes == [48, 49] and [no_room(model, size) == "" for size in sizes] == [True, False]
    with pytest.raises(ValueError, match=r"49 tokens do not fit into the model\.context of 48 tokens"):
        find_needles(model, hay, NEEDLE, length=47, depths=[0.5], samples=1)
