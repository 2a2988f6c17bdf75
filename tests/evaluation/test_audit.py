"""An audit's interventions do what they say, and its checks can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import abstract, random_params
from titans_jax.data import BYTES, train_bpe
from titans_jax.decode import generate
from titans_jax.evaluation import Hay, Needle, audit
from titans_jax.evaluation import facts as facts_of
from titans_jax.nn import LM, MemoryConfig, ModelConfig

MEMORY = MemoryConfig(rule="deltanet", chunk=8, heads=2, head_dim=8, conv=2)
SMALL = dict(dim=16, depth=2, heads=2, head_dim=8, segment=8, window=8, memory=MEMORY)
NEEDLE = Needle("KEY {key}!", "KEY?", " {key}", digits=2)
HAY = Hay(["one two three four five six seven eight nine ten"], BYTES)


def made(cls=LM, **changes):
    graphdef, shapes = abstract(cls, ModelConfig(**SMALL | {"persistent": 0} | changes))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_params(shapes)))


@pytest.fixture(scope="module")
def facts():
    return facts_of.make_facts(HAY, NEEDLE, 60, samples=3, seed=0)


def test_texts_differ_in_their_fact_alone(facts):
    for text, control, answer in zip(facts.texts, facts.controls, facts.answers, strict=True):
        key = BYTES.decode(answer)
        assert f"KEY{key}! " in BYTES.decode(text) and "KEY" not in BYTES.decode(control)
        assert text.shape == control.shape == (55,) and (text[9:] == control[9:]).all()
    differ = facts.texts != facts.twins
    assert (differ.any(0).nonzero()[0] == [5, 6]).all() and differ.any(1).all()
    assert BYTES.decode(facts.question) == "\nKEY?" and len({tuple(answer) for answer in facts.answers}) > 1


def test_texts_have_one_length_where_keys_take_more_or_fewer_tokens(tmp_path):
    tokenizer = train_bpe(["KEY 12! KEY 34! KEY? 56 " * 20], 300, tmp_path / "bpe.json")
    lengths = {len(tokenizer.encode(f" {key}")) for key in range(10, 100)}
    made = facts_of.make_facts(Hay(["one two three four five six"], tokenizer), NEEDLE, 60, samples=4, seed=0)
    assert len(lengths) > 1 and made.texts.shape == made.controls.shape and len(made.answers) == 4
    assert all(
        tokenizer.decode(key) in tokenizer.decode(text) for key, text in zip(made.answers, made.texts, strict=True)
    )


def answers(model, state, facts):
    return np.asarray(audit._answer(*nnx.split(model), audit.copied(state), facts.question, facts.answers.shape))


@pytest.mark.parametrize("block", ["lmm", "transformer"])
def test_another_texts_memory_is_all_that_a_memory_alone_knows_and_nothing_to_attention(block, facts):
    model = made(block=block)
    _, state = audit.prefill(model, facts.texts)
    own, exchanged = (
        np.asarray(audit._piece(*nnx.split(model), audit.copied(state), np.tile(facts.question, (3, 1)))[0])
        for state in (state, audit._exchanged(model, state, audit._next_row(model, state)))
    )
    np.testing.assert_array_equal(exchanged, np.roll(own, -1, 0) if block == "lmm" else own)
    assert (own[0] != own[1]).any()


def test_answers_are_what_greedy_generation_writes(facts):
    model = made(block="mac")
    prompts = np.concatenate([facts.texts, np.tile(facts.question, (3, 1))], 1)
    _, state = audit.prefill(model, facts.texts)
    written = generate(model, prompts, length=3, temperature=0)
    np.testing.assert_array_equal(answers(model, state, facts), written)


def test_an_untrained_model_recalls_nothing_and_no_more_than_chance_is_allowed(facts):
    model = made(block="mac")
    checks = audit.recall_checks(model, facts, chance=1 / 90)
    assert [check.passed for check in checks] == [False, True, True, True, True, False]
    guessing = audit.recall_checks(model, facts._replace(answers=answers_of(model, facts)), chance=1 / 90)
    assert guessing[0].passed and not guessing[1].passed  # it is written without the fact


def answers_of(model, facts):
    return answers(model, audit.prefill(model, facts.texts)[1], facts)


class Peeking(LM):
    """An LM that reads a token before its turn."""

    def __call__(self, tokens, state, reset=None, *, aligned=False):
        return super().__call__(jnp.roll(tokens, -1, 1), state, reset, aligned=aligned)


@pytest.mark.parametrize("cls", [LM, Peeking])
def test_a_model_that_peeks_is_found(cls):
    tokens = np.random.default_rng(0).integers(0, 256, (2, 25))
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": np.ones((2, 24), np.float32)}
    causal, pieces, single, gain = audit.text_checks(made(cls, block="lmm"), batch)
    honest = cls is LM
    assert causal.passed == single.passed == honest and pieces.passed
    assert abs(gain.value) > 0 and gain.unit == "nats a token"
    assert ("depend" in audit.verdict([causal, pieces, single, gain])) == (not honest)


def test_a_verdict_says_what_the_memory_is_worth():
    gain = audit.Check("gain", 0.25, "nats a token", "", True)
    on, off = audit.Check("on", 0.75, "of answers", "", True), audit.Check("off", 0.0, "of answers", "", True)
    assert "recalls 75% of the facts; learning is worth 0.25 nats a token" in _verdict(on, off, gain)
    assert "its memory does not recall the facts" in _verdict(on, off._replace(passed=False), gain)
    stored, addressed = (audit.Check(name, 0.5 + x, "of texts", "", True) for name, x in (("s", 0.25), ("a", 0.0)))
    lost = _verdict(on, off._replace(passed=False), stored, addressed, gain)
    assert "does not recall the facts (stored in 75% of texts, addressed in 50% of texts)" in lost
    assert _verdict(gain._replace(passed=False)).endswith("however it reads; learning adds nothing on text")


def _verdict(*checks):
    return audit.verdict([audit.Check("causal", 0, "scores", "0", True), *checks])


@pytest.mark.parametrize(
    "changes",
    [
        dict(block="transformer", attention="sliding", window=8),
        dict(block="transformer", attention="segmented", segment=8),
        dict(block="mac", segment=8),
        dict(block="mag", window=4),
        dict(block="lmm"),
    ],
    ids=lambda changes: changes["block"] + changes.get("attention", ""),
)
def test_without_learning_nothing_comes_from_beyond_the_reach(changes):
    model = made(**changes)
    cold, reach = audit.frozen(model), int(audit.reach(model))
    tokens = np.random.default_rng(0).integers(0, 256, (1, reach + 10))
    other = tokens.copy()
    other[:, :9] = (other[:, :9] + 1) % 256  # token 9 is the last one within the reach of the last token
    found = [np.array_equal(*(audit._scores(m, x, x.shape[1])[:, -1] for x in (tokens, other))) for m in (cold, model)]
    assert found == [True, changes["block"] == "transformer"]


def test_full_attention_reaches_everything():
    assert audit.reach(made(block="mal", attention="full")) == np.inf


@pytest.mark.parametrize(("block", "rule"), [("lmm", "titans"), ("mac", "deltanet")])
def test_an_untrained_memory_stores_and_addresses_a_fact_and_the_model_does_not_read_it_out(block, rule):
    same = Needle("KEY: {key}!", "KEY:", " {key}", digits=2)  # the same bytes before the key in text and question
    many = facts_of.make_facts(HAY, same, 60, samples=16, seed=0)
    memory = MemoryConfig(rule=rule, chunk=8, heads=2, head_dim=16)
    model = LM(ModelConfig(**SMALL | {"block": block, "dim": 32, "memory": memory}), rngs=nnx.Rngs(0))
    stored, addressed = audit.probe_checks(model, many)
    assert stored.passed and addressed.passed and not audit.recall_checks(model, many, 1 / 90)[0].passed
    assert [check.value for check in audit.probe_checks(audit.frozen(model), many)] == [0, 0]
    kernel = model.blocks[0].memory.qkv.linear.kernel
    heads = kernel[...].reshape(2, 32, 2, 48)
    other = jax.random.normal(jax.random.key(5), heads[..., :16].shape) / 32**0.5
    kernel[...] = heads.at[..., :16].set(other).reshape(kernel.shape)  # queries that are not the keys
    stored, addressed = audit.probe_checks(model, many)
    assert stored.passed and not addressed.passed


def test_an_answer_in_other_tokens_is_stored_and_cannot_be_addressed(facts):
    assert facts.answer_start == 4
    stored, addressed = audit.probe_checks(made(block="lmm"), facts._replace(answer_start=None))
    assert stored.unit == "of texts" and addressed.passed is None
    assert audit.probe_checks(made(block="transformer"), facts) == []
