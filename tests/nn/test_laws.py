"""The laws of nn, which hold for every model of `members`.

The fast lane has a few models that contain every value of every option; the slow lane has every allowed pair.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import (
    BATCH,
    FEW,
    MEMBERS,
    SEGMENT,
    TOKENS,
    VOCAB,
    Subject,
    config_of,
    jit,
    label,
    name_of,
    subject,
)
from tests.tolerance import close
from titans_jax.loss import cross_entropy
from titans_jax.nn import ModelConfig

PIECES = (1, 13)  # a token, and more than a segment: from every offset in one


def params(fast: list[dict[str, Any]], slow: list[dict[str, Any]]) -> list[Any]:
    """Test parameters: the rows of the fast lane, then the other rows of the slow lane."""
    rest = [row for row in slow if row not in fast]
    return [pytest.param(row, id=label(row)) for row in fast] + [
        pytest.param(row, id=label(row), marks=pytest.mark.slow) for row in rest
    ]


class Member(NamedTuple):
    row: dict[str, Any]
    model: Subject


@pytest.fixture(scope="module", params=params(FEW, MEMBERS))
def member(request: pytest.FixtureRequest) -> Member:
    return made(request.param, config_of(request.param))


def made(row: dict[str, Any], config: ModelConfig) -> Member:
    """The member of a row; the last one is cached for the next tests."""
    if config not in _LAST:
        _LAST.clear()
        _LAST[config] = subject(config)
    return Member(row, _LAST[config])


_LAST: dict[ModelConfig, Subject] = {}


def tokens(seed: int = 0, length: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, length), np.int32)


def read(model: Subject, text: np.ndarray) -> tuple[np.ndarray, Any]:
    """One call, with a reset nowhere: the program that reads packed documents. Pieces are read without it."""
    logits, state, _ = model.call(text, model.start, np.zeros(text.shape, bool))
    return np.asarray(logits), jax.device_get(state)


def in_pieces(model: Subject, text: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, Any]:
    state, parts = model.start, []
    for piece in np.split(text, np.cumsum(sizes)[:-1], axis=1):
        logits, state, _ = model.call(piece, state)
        parts.append(logits)
    return np.concatenate(parts, 1), jax.device_get(state)


def same(got: Any, want: Any) -> None:
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(x, y)


def splits() -> list[list[int]]:
    rng, made = np.random.default_rng(1), []
    for _ in range(4):
        sizes: list[int] = []
        while (rest := TOKENS - sum(sizes)) > 0:
            sizes.append(int(rng.choice([size for size in PIECES if size <= rest])))
        made.append(sizes)
    return made


def test_causality(member):
    model, text = member.model, tokens()
    before, _ = read(model, text)
    for at in (1, SEGMENT, 2 * SEGMENT + 5, TOKENS - 1):
        changed = np.where(np.arange(TOKENS) < at, text, tokens(seed=2))
        changed[:, at] = (text[:, at] + 1) % VOCAB
        after, _ = read(model, changed)
        same(after[:, :at], before[:, :at])
        assert (after[:, at] != before[:, at]).any()


@pytest.mark.parametrize("member", params(FEW, []), indirect=True)
@pytest.mark.parametrize("length", [TOKENS, 1])
def test_the_batch_size_may_be_symbolic(member, length):
    """Exported programs have a symbolic batch size."""
    (batch,) = jax.export.symbolic_shape("b")
    shapes = jax.eval_shape(lambda: member.model.params)

    def begin(params: Any, rows: Any) -> Any:
        return nnx.merge(member.model.graphdef, params).init_state(rows.shape[0])

    def advance(params: Any, tokens: Any, state: Any) -> Any:
        return nnx.merge(member.model.graphdef, params)(tokens, state)[:2]

    state = jax.eval_shape(begin, shapes, jax.ShapeDtypeStruct((batch,), jnp.int32))
    logits, after = jax.eval_shape(advance, shapes, jax.ShapeDtypeStruct((batch, length), jnp.int32), state)
    assert logits.shape == (batch, length, VOCAB)
    assert after == state


def test_any_split_of_a_stream_gives_the_same_outputs(member):
    streams(member)


def streams(member: Member, tolerance: float = 1e-4) -> None:
    """A text in pieces gives the logits and the state of one call."""
    model, text = member.model, tokens()
    whole = read(model, text)
    for sizes in splits():
        close(in_pieces(model, text, sizes), whole, tolerance)


def test_greedy_decoding_equals_one_call(member):
    """Tokens decoded one at a time are the predictions of one call over all of them."""
    model, made = member.model, tokens()[:, :SEGMENT]
    state, parts = model.start, []
    for at in range(TOKENS):
        logits, state, _ = model.call(made[:, at : at + 1], state)
        parts.append(np.asarray(logits))
        if at + 1 == made.shape[1]:
            made = np.concatenate([made, logits.argmax(-1).astype(np.int32)], 1)
    made, decoded = made[:, :-1], np.concatenate(parts, 1)
    logits, whole = read(model, made)
    close((decoded, jax.device_get(state)), (logits, whole), 1e-4)
    predicted, chosen = logits[:, SEGMENT - 1 : -1], made[:, SEGMENT:]
    # another token may be chosen only where the two are as good as equal in the one call too
    best = predicted.max(-1) - np.take_along_axis(predicted, chosen[..., None], -1)[..., 0]
    assert best.max() < 1e-4 and (best == 0).mean() > 0.98


def test_a_token_four_windows_back_is_remembered(member):
    """By the memory: a transformer with sliding or segmented attention does not see it."""
    (row, model), text, changed = member, tokens(), tokens()
    changed[:, : TOKENS - 4 * SEGMENT] = tokens(seed=3)[:, : TOKENS - 4 * SEGMENT]
    last, other = read(model, text)[0][:, -1], read(model, changed)[0][:, -1]
    if row["block"] == "transformer" and row["attention"] != "full":
        same(other, last)
    else:
        assert np.abs(other - last).max(-1).min() > 1e-5


def test_rows_do_not_mix_and_calls_repeat(member):
    model, text, changed = member.model, tokens(), tokens()
    changed[1] = tokens(seed=4)[1]
    logits, state = read(model, text)
    again, state_again = read(model, text)
    same((again, state_again), (logits, state))
    other, state_other = read(model, changed)
    same(other[0], logits[0])
    assert (other[1] != logits[1]).any()
    per_row = lambda state: [x[:, 0] for x in jax.tree.leaves(state.blocks) if x.ndim > 1]
    same(per_row(state_other), per_row(state))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), jax.device_get(model.start)
    )


def test_packed_documents_do_not_see_each_other(member):
    documents(member)


def documents(member: Member, tolerance: float = 1e-4) -> None:
    """A document in a packed row gives the logits of the document alone."""
    model, text = member.model, tokens()
    starts = (0, 2 * SEGMENT, 4 * SEGMENT)
    reset = np.isin(np.arange(TOKENS), starts)[None].repeat(BATCH, 0)
    packed = np.asarray(model.call(text, model.start, reset)[0])
    for start, end in zip(starts, (*starts[1:], TOKENS), strict=True):
        alone, _ = read(model, np.roll(text, -start, 1))  # what follows a document does not change it
        close(packed[:, start:end], alone[:, : end - start], tolerance)


DEAD = {
    # the first attention layer has no values to mix in: a stack of one first layer has a dead mix
    "transformer,mac": {"blocks/0/projections/mix", "blocks/0/attention/projections/mix"},
}
UNREAD = {
    # gates that a rule has no use for
    "deltanet": {"momentum"},
    "gated_deltanet": {"momentum"},
    "ttt_mlp": {"momentum", "keep"},
    **{name: {"momentum"} for name in ("moneta", "yaad", "memora")},
}


def gradients(row: dict[str, Any], remat: bool) -> dict[str, np.ndarray]:
    config = config_of(row, remat=remat)
    model, text = subject(config), tokens()

    def loss(arrays: Any) -> jax.Array:
        lm = nnx.merge(model.graphdef, arrays)
        logits, _, _ = lm(text[:, :-1], lm.init_state(BATCH), aligned=True)
        return cross_entropy(logits, text[:, 1:], jnp.ones((BATCH, TOKENS - 1)))[0]

    found = jit(jax.grad(loss))(model.params)
    return {name_of(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(found)}


@pytest.mark.parametrize("row", params([], FEW))
def test_every_parameter_has_a_gradient(row):
    found = gradients(row, remat=True)
    dead = {name for name, x in found.items() if not np.abs(x).any()}
    unread = {name for name in found if set(name.split("/")) & UNREAD.get(row["rule"], set())}
    assert all(np.isfinite(x).all() for x in found.values())
    assert dead <= DEAD.get(row["block"], set()) | unread, dead


@pytest.mark.slow
@pytest.mark.parametrize("block", ["mac", "transformer"])
def test_remat_changes_no_gradient(block):
    row = next(row for row in MEMBERS if row["block"] == block)
    want, got = gradients(row, remat=False), gradients(row, remat=True)
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=1e-5 * np.abs(x).max(), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("row", params([], FEW[:3]))
def test_bfloat16(row):
    """Only activations are rounded: exactly causal, streaming within rounding, close to the float32 model."""
    config = config_of(row, dtype="bfloat16")
    model, text, changed = subject(config), tokens(), tokens()
    changed[:, 21:] = tokens(seed=2)[:, 21:]
    (logits, state), (other, _) = read(model, text), read(model, changed)
    same(other[:, :21], logits[:, :21])
    assert logits.dtype == np.float32
    floats = [x for x in jax.tree.leaves(model.params) + jax.tree.leaves(state) if x.dtype.kind == "f"]
    assert all(x.dtype == np.float32 for x in floats)
    pieces, _ = in_pieces(model, text, [1] * TOKENS)
    exact, _ = read(subject(dataclasses.replace(config, dtype="float32")), text)
    for got in (pieces, exact):
        assert np.abs(got - logits).mean() < 0.05 * np.abs(exact).mean()
