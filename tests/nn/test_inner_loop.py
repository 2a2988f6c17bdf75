"""The inner loop: its updates by hand; any split; causality; rate 0; training gradients through the updates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import BATCH, SEGMENT, TOKENS, VOCAB, Subject, config_of, jit, name_of, subject
from tests.nn.test_laws import close, read, same
from titans_jax.loss import cross_entropy
from titans_jax.nn import LM, CMSConfig, ModelConfig
from titans_jax.nn.cms import kernels_of, with_kernels
from titans_jax.nn.inner_loop import InnerLoop

CMS = CMSConfig(periods=(8, 16), rate=0.5, clip=1.0)
ATTENTION = dict(block="hope_attention", attention="sliding")


def config(row: dict[str, Any] = ATTENTION, **cms: Any) -> ModelConfig:
    return config_of(row, depth=1, cms=dataclasses.replace(CMS, **cms))


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, TOKENS), np.int32)


@pytest.fixture(scope="module")
def learner() -> Subject:
    return subject(config(), InnerLoop)


def whole(made: ModelConfig, text: np.ndarray, reset: Any = None) -> Any:
    """Logits and state of one call from the initial state."""
    model = subject(made, InnerLoop)

    def run(params: Any, text: Any) -> Any:
        lm = nnx.merge(model.graphdef, params)
        return lm(text, lm.init_state(BATCH), reset)[:2]

    return jax.device_get(jit(run)(model.params, text))


def by_hand(made: ModelConfig, text: np.ndarray) -> tuple[np.ndarray, Any]:
    """By hand: the loss of each chunk before its update; sums over C_l tokens; no update without the last target."""
    static = subject(made, LM)
    params = jax.tree.map(jnp.asarray, static.params)
    chunk = min(p for p in made.cms.periods if p)

    def loss(kernels: Any, state: Any, x: Any, following: Any) -> Any:
        lm = nnx.merge(static.graphdef, params)
        logits, state, _ = lm(x, state._replace(blocks=with_kernels(state.blocks, kernels)))
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), following[..., None], -1)
        return -taken.sum(), (logits, state)

    gradient = jit(jax.grad(loss, has_aux=True))
    state, parts = static.start, []
    first = jax.device_get(kernels_of(state.blocks))
    sums = jax.tree.map(np.zeros_like, first)
    for at in range(0, TOKENS, chunk):
        following = np.roll(text, -1, 1)[:, at : at + chunk]
        kernels = jax.device_get(kernels_of(state.blocks))
        g, (logits, state) = jax.device_get(gradient(kernels, state, text[:, at : at + chunk], following))
        parts.append(logits)
        if at + chunk == TOKENS:
            break
        sums = jax.tree.map(np.add, sums, g)
        faster = None
        for level, period in enumerate(made.cms.periods):
            if period and (at + chunk) % period == 0:
                leaves = jax.tree.leaves(sums[level])
                for b in range(BATCH):
                    size = np.sqrt(sum((x[:, b].astype(np.float64) ** 2).sum() for x in leaves))
                    assert made.cms.clip is None or size > made.cms.clip / 10
                    factor = made.cms.rate * (1.0 if made.cms.clip is None else min(1.0, made.cms.clip / size))
                    for block, s in zip(kernels[level], sums[level], strict=True):
                        for name in block:
                            block[name] = block[name].copy()
                            block[name][:, b] -= factor * s[name][:, b]
                sums[level] = jax.tree.map(np.zeros_like, sums[level])
                if made.cms.variant == "nested" and faster is not None:
                    kernels[faster] = first[faster]
            if period:
                faster = level
        state = state._replace(blocks=with_kernels(state.blocks, kernels))
    return np.concatenate(parts, 1), state


@pytest.mark.parametrize(
    "cms",
    [
        dict(),
        pytest.param(dict(variant="nested", periods=(4, 8, 16)), marks=pytest.mark.slow),
        pytest.param(dict(variant="independent", clip=None, rate=0.05), marks=pytest.mark.slow),
        pytest.param(dict(periods=(0, 8)), marks=pytest.mark.slow),
    ],
    ids=["sequential", "nested", "independent", "TTT-E2E"],
)
def test_updates_equal_the_equations(cms):
    made, text = config(**cms), tokens()
    logits, state = whole(made, text)
    want, last = by_hand(made, text)
    close(logits, want, 1e-5)
    close(kernels_of(state.now.blocks), kernels_of(last.blocks), 1e-5)
    static, _ = read(subject(config(rate=0.0, **{k: v for k, v in cms.items() if k != "rate"}), LM), text)
    chunk = min(p for p in made.cms.periods if p)
    close(logits[:, :chunk], static[:, :chunk], 1e-5)
    assert np.abs(logits - static)[:, chunk:].max() > 1e-2, "the writes were meant to show"


@pytest.mark.parametrize("rate", [0.0, pytest.param(1e-12, marks=pytest.mark.slow)])
def test_rate_0_equals_the_lm(rate):
    """At rate 0 there are no updates; at a rate near 0 outputs change little."""
    text = tokens()
    logits, _ = whole(config(rate=rate), text)
    static, _ = read(subject(config(rate=0.0), LM), text)
    close(logits, static, 3e-6)


def test_any_split_of_a_stream_gives_the_same_outputs(learner):
    text = tokens()
    want = whole(config(), text)
    for sizes in ([1] * TOKENS, [13, 1, 1, 1, 13, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]):
        state, parts, at = learner.start, [], 0
        for size in sizes:
            logits, state, _ = learner.call(text[:, at : at + size], state)
            parts.append(logits)
            at += size
        got = np.concatenate(parts, 1), jax.device_get(state)
        assert at == TOKENS and int(got[1].step) == int(want[1].step) == TOKENS
        close(got[0], want[0], 1e-4)
        close(got[1], want[1], 1e-4)


def test_unstacked_layers_give_the_same_updates(learner):
    model = nnx.merge(learner.graphdef, learner.params)
    text = tokens()
    _, state, _ = learner.call(text[:, :5], learner.start)
    graphdef, params = nnx.split(model.by_layer())
    step = jit(lambda params, token, state: nnx.merge(graphdef, params)(token, state)[:2])
    own = model.state_by_layer(state)
    for token in text.T[5 : 5 + SEGMENT]:
        want, state, _ = learner.call(token[:, None], state)
        got, own = step(params, token[:, None], own)
        close(got, want, 1e-5)


@pytest.mark.slow
def test_causality(learner):
    text = tokens()
    before = learner.call(text, learner.start)[0]
    for at in (1, SEGMENT, 2 * SEGMENT + 5, TOKENS - 1):
        changed = np.where(np.arange(TOKENS) < at, text, tokens(seed=2))
        changed[:, at] = (text[:, at] + 1) % VOCAB
        after = learner.call(changed, learner.start)[0]
        same(after[:, :at], before[:, :at])
        assert (after[:, at] != before[:, at]).any()


@pytest.mark.slow
def test_tokens_outside_the_window_are_remembered_and_rows_do_not_mix(learner):
    text, changed = tokens(), tokens()
    changed[1, :SEGMENT] = tokens(seed=3)[1, :SEGMENT]  # four windows before the end, in the second row alone
    logits, other = (np.asarray(learner.call(x, learner.start)[0]) for x in (text, changed))
    same(other[0], logits[0])
    assert np.abs(other[1, -1] - logits[1, -1]).max() > 1e-5


@pytest.mark.slow
def test_documents_do_not_see_each_other():
    made, text = config(), tokens()
    reset = np.isin(np.arange(TOKENS), [0, 16])[None].repeat(BATCH, 0)
    packed, _ = whole(made, text, reset)
    alone, _ = whole(made, np.roll(text, -16, 1))
    close(packed[:, 16:], alone[:, : TOKENS - 16], 1e-4)
    model = subject(made, InnerLoop)
    state, parts = model.start, []
    for at in range(0, TOKENS):
        logits, state, _ = model.call(text[:, at : at + 1], state, reset[:, at : at + 1])
        parts.append(logits)
    close(np.concatenate(parts, 1), packed, 1e-4)


def gradients(first_order: bool) -> tuple[Any, Any, Any]:
    """A loss of two chunks, its gradient by the parameters, and the parameters."""
    made = config(periods=(8,), first_order=first_order, clip=None, rate=0.05)
    model, text = subject(made, InnerLoop), tokens()[:, : 2 * SEGMENT + 1]

    def loss(arrays: Any) -> Any:
        lm = nnx.merge(model.graphdef, arrays)
        logits, _, _ = lm(text[:, :-1], lm.init_state(BATCH))
        return cross_entropy(logits, text[:, 1:], jnp.ones((BATCH, 2 * SEGMENT)))[0]

    return jit(loss), jit(jax.grad(loss))(jax.tree.map(jnp.asarray, model.params)), model.params


@pytest.mark.slow
def test_training_gradients_go_through_the_updates():
    """The gradient equals central differences along itself; with first_order it differs from them."""
    loss, found, params = gradients(first_order=False)
    _, other, _ = gradients(first_order=True)

    def slopes(direction: Any) -> tuple[float, float]:
        """The slope along a unit direction, by differences and by the gradient."""
        size = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(direction)))
        ends = [float(loss(jax.tree.map(lambda x, d, h=h: x + h * d / size, params, direction))) for h in (5e-3, -5e-3)]
        along = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (found, direction)), strict=True))
        return (ends[0] - ends[1]) / 1e-2, along / size

    apart = jax.tree.map(jnp.subtract, found, other)  # what goes through the writes alone
    for direction in (found, apart):
        differences, slope = slopes(direction)
        assert slope == pytest.approx(differences, rel=0.02)
    for path, x in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(x).all() and np.abs(x).any(), name_of(path)
