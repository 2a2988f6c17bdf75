"""Titan-Min: nothing comes from padding or from the future, and what is far comes through the memory alone."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from titans_jax import needle
from titans_jax.memory import Gates, State
from titans_jax.needle import standalone
from titans_jax.needle.model import SurpriseGatedMemory, TitanBlock

TINY = needle.NeedleConfig(
    dim=16,
    heads=2,
    layers=1,
    memory_slots=2,
    memory_rule="titans_linear",
    memory_dim=8,
    memory_heads=1,
    segment_size=8,
    n_persistent=2,
    head="classify",
    lengths=(8, 16),
)
TOKENS = np.random.default_rng(0).integers(1, 127, (4, 16)).astype(np.int32)
TOKENS[1, 8:] = 0
TOKENS[2] = np.where(np.arange(16) == 15, 127, TOKENS[0])  # as row 0 but for its last token
TOKENS[3] = np.where(np.arange(16) == 0, 127, TOKENS[0])  # as row 0 but for its first token
call = jax.jit(lambda model, tokens: model(tokens))


def made(config):
    return jax.jit(lambda: needle.TitanMin(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def model():
    return made(TINY)


@pytest.fixture(scope="module")
def answers(model):
    return jax.device_get(call(model, TOKENS))


def test_padding_moves_nothing(model, answers):
    alone, look = call(model, TOKENS[1:2, :8])
    np.testing.assert_allclose(answers[0][1, :8], alone[0], atol=1e-6)
    np.testing.assert_allclose(answers[1].surprise[:, 1:2, :, :8], look.surprise, atol=1e-5)
    assert (answers[0][1, 8:] < -1e38).all()  # no answer there


def test_no_token_sees_the_future(answers):
    surprise = answers[1].surprise
    np.testing.assert_array_equal(surprise[:, 2, :, :15], surprise[:, 0, :, :15])
    assert (surprise[:, 2, :, 15] != surprise[:, 0, :, 15]).all()


def test_a_first_segment_reaches_the_last_token_through_the_memory_alone(answers):
    without, look = call(made(dataclasses.replace(TINY, memory=False)), TOKENS)
    np.testing.assert_array_equal(without[3], without[0])
    assert look is None
    assert abs(answers[0][3] - answers[0][0]).max() > 1e-5


@pytest.mark.parametrize(("l2", "activation"), [(True, "silu"), (False, "relu")])
def test_a_block_without_memory_is_attention_in_segments_behind_learned_tokens(l2, activation):
    config = dataclasses.replace(TINY, memory=False, l2=l2, activation=activation)
    block = TitanBlock(config, rngs=nnx.Rngs(1))
    x = np.random.default_rng(2).normal(size=(1, 16, 16)).astype(np.float32)
    y, _ = jax.jit(lambda block, x: block(x))(block, x)
    np.testing.assert_allclose(y[0], x[0] + mixed(block, x[0], l2, activation), atol=1e-5)


def mixed(block, x, l2, activation):
    """What the block adds to x [16, 16], token by token; its convolution is the identity when it is made."""

    def silu(a):
        return a / (1 + np.exp(-a))

    def normal(a):
        return a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-6)

    def heads(a):
        q, k, v = np.moveaxis((normal(a) @ block.qkv.kernel).reshape(-1, 3, 2, 8), 1, 0)
        q, k, v = ((silu if activation == "silu" else lambda a: np.maximum(a, 0))(part) for part in (q, k, v))
        unit = (lambda a: a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6)) if l2 else lambda a: a
        return unit(q), unit(k), v

    (q, k, v), (_, front_k, front_v) = heads(x), heads(np.asarray(block.persistent))
    y = np.zeros((16, 2, 8))
    for t in range(16):
        start = t // 8 * 8
        for h in range(2):
            seen_k = np.concatenate([front_k[:, h], k[start : t + 1, h]])
            seen_v = np.concatenate([front_v[:, h], v[start : t + 1, h]])
            weights = np.exp(seen_k @ q[t, h] * (10 if l2 else 8**-0.5))
            y[t, h] = weights @ seen_v / weights.sum()
    return (normal(y.reshape(16, 16)) * silu(normal(x) @ block.gate.kernel)) @ block.out.kernel


def test_a_token_is_written_where_the_memory_errs_enough():
    memory = jax.eval_shape(
        lambda: SurpriseGatedMemory(dataclasses.replace(TINY, surprise_threshold=0.8), rngs=nnx.Rngs(0))
    )
    v = jax.random.normal(jax.random.key(0), (1, 1, 3, 8))
    known = jnp.array([0.1, 0.3, 1.9])[:, None]  # share of the value that the memory says: it errs by 0.9, 0.7, 0.9
    state = State({"w": jnp.eye(8)[None, None]}, (), {}, jnp.int32(0))
    gates = Gates(*jnp.full((3, 1, 1, 3), 0.5))
    modulated = memory.modulate_gates(gates, state, known * v, v)
    np.testing.assert_array_equal(modulated.rate[0, 0], [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(modulated.keep, gates.keep)


@pytest.mark.slow
def test_with_every_part_left_out_but_the_memory_a_needle_far_back_still_reaches_the_answer():
    bare = {"memory_slots": 0, "n_persistent": 0, "surprise_threshold": 0.0, "dsconv": False}
    logits, look = call(made(dataclasses.replace(TINY, **bare)), TOKENS)
    assert abs(logits[3] - logits[0]).max() > 1e-5
    assert (look.rate > 0).all()


def test_what_is_exported_answers_alike_where_the_package_is_not(model, answers, tmp_path, run_python):
    manifest = json.loads(needle.export(model, tmp_path).read_text())
    program = tmp_path / "length_16.stablehlo"
    assert [entry["length"] for entry in manifest["files"]] == [8, 16]
    assert manifest["files"][1]["sha256"] == hashlib.sha256(program.read_bytes()).hexdigest()
    np.save(tmp_path / "tokens.npy", TOKENS[1:])  # any number of rows
    blind = "sys.modules['titans_jax'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], {}, '__main__')"
    found = run_python("-c", f"import runpy, sys; {blind}", tmp_path / "run.py", program, tmp_path / "tokens.npy")
    assert [int(line) for line in found.stdout.split()] == answers[0][1:].argmax(1).tolist()
    with pytest.raises(ValueError, match="takes sequences of at most 16 tokens, not 17"):
        standalone.logits(program, np.ones((1, 17), np.int32))
    with pytest.raises(ValueError, match="is not an exported program"):
        standalone.logits(tmp_path / "run.py", TOKENS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 20, "heads": 3}, "dim: 20 is not a multiple of heads 3"),
        ({"surprise_threshold": -1.0}, "surprise_threshold: -1.0; it must be 0 or more"),
        ({"epochs": 0}, "epochs: 0; it must be above 0"),
        ({"lengths": ()}, "lengths"),
    ],
)
def test_what_could_not_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_a_sequence_longer_than_the_positions_is_refused(model):
    with pytest.raises(ValueError, match="17 in a sequence; this model has 16 positions"):
        call(model, np.ones((1, 17), np.int32))
