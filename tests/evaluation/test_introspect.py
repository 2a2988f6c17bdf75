"""A watched model: the same model, and what it shows is what its parts did."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import SEGMENT, VOCAB, abstract, jit, random_params
from titans_jax.evaluation import Reading, read
from titans_jax.evaluation.introspect import Watched, watch
from titans_jax.memory import State
from titans_jax.nn import LM, MemoryConfig, ModelConfig

TOKENS = 2 * SEGMENT + 3
MEMORY = MemoryConfig(chunk=SEGMENT // 2, heads=2, head_dim=8)
SMALL = dict(dim=16, depth=2, heads=3, head_dim=6, window=SEGMENT, segment=SEGMENT, context=40, vocab_size=VOCAB)
KINDS: dict[str, ModelConfig] = {
    "mac": ModelConfig("mac", **SMALL, persistent=3, value_residual=True, weight_residual=True, memory=MEMORY),
    "mag": ModelConfig("mag", **SMALL, persistent=2, attention="full", memory=MEMORY),
    "mal": ModelConfig("mal", **SMALL, persistent=0, attention="segmented", value_residual=True, memory=MEMORY),
    "lmm": ModelConfig("lmm", **SMALL, memory=MemoryConfig(rule="deltanet", chunk=1, heads=2, head_dim=8)),
    "transformer": ModelConfig("transformer", **SMALL, persistent=3),
    "mixed": ModelConfig("transformer,lmm", **SMALL, persistent=0, memory=MEMORY),
}


class Seen(NamedTuple):
    model: Any
    reading: Reading
    tokens: np.ndarray


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest) -> Seen:
    config = KINDS[request.param]
    graphdef, shapes = abstract(LM, config)
    model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_params(shapes)))
    tokens = np.random.default_rng(1).integers(0, VOCAB, TOKENS, np.int32)
    return Seen(model, read(model, tokens.tolist()), tokens)


def kinds(*fast: str) -> Any:
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name not in fast]
    return pytest.mark.parametrize("seen", [*fast, *slow], indirect=True)


@kinds("mac", "mixed")
def test_it_is_the_same_model(seen):
    run = jit(lambda model, tokens: model(tokens, model.init_state(1)))
    logits, _, look = run(seen.model, seen.tokens[None])
    np.testing.assert_allclose(seen.reading.logits, logits[0], rtol=1e-3, atol=1e-4)
    if look is None:
        assert seen.reading.memory is None
        return
    layers = list(seen.reading.weights[0])
    for name in ("surprise", "grad_norm", "rate", "momentum", "keep"):  # what every engine has for every token
        shown = getattr(seen.reading.memory.info, name)
        np.testing.assert_allclose(shown[layers], getattr(look, name)[:, 0], rtol=2e-3, atol=1e-5, err_msg=name)


@kinds("mac", "mixed")
def test_weights_are_shares_of_what_came_before(seen):
    config, attended = seen.model.config, seen.reading.attention
    if attended is None:
        assert config.block == "lmm"
        return
    layers = np.flatnonzero(np.isfinite(attended.key).all((1, 2)))
    assert list(layers) == [i for i in range(2) if config.pattern[i % len(config.pattern)] != "lmm"]
    near = (attended.tokens + attended.read)[layers]
    assert (near >= 0).all()
    total = near.sum(-1)
    if config.persistent:
        assert (total < 1 - 1e-6).all() and (total > 0).all()
    else:
        np.testing.assert_allclose(total, 1, rtol=1e-5)
    begun = config.block == "mac" or config.attention == "segmented"
    for t in range(TOKENS):
        first = t - t % SEGMENT if begun else max(0, t + 1 - SEGMENT) if config.attention == "sliding" else 0
        assert not near[:, :, t, t - first + 1 :].any(), t
        assert near[:, :, t, : t - first + 1].all(), t
    assert attended.read[layers].any() == (config.block == "mac")


@kinds("mac")
def test_weights_are_the_softmax_by_hand(seen):
    """Of the first layer, whose input is known: Titans Eq 1-2 and 19, and for MAC 21-23, in numpy."""
    config, model = seen.model.config, seen.model
    block = jax.tree.map(lambda x: x[0], model.blocks[0])
    if config.pattern[0] == "lmm":
        return
    x = model.embed(jnp.asarray(seen.tokens)[None], jnp.arange(TOKENS)[None])
    if config.block == "mal":
        age = jnp.arange(TOKENS)[None]
        y = block.memory(block.norm(x), block.memory.init_state(1), age)[0]
        x = block.attention_norm(x + y)
    else:
        x = block.norm(x)
    projections = block.projections if config.block == "mac" else block.attention.projections
    q, k, _, _ = (None if part is None else np.asarray(part)[0] for part in projections.qkv(x, None))
    shown = seen.reading.attention
    np.testing.assert_allclose(shown.key[0], np.linalg.norm(k, axis=-1).T, rtol=1e-4)
    local = config.block == "mac" or config.attention == "segmented"
    front = np.zeros((0, *k.shape[1:]))
    rotated, queries = (by_hand(x, np.arange(TOKENS)) for x in (k, q))
    if config.block == "mac":  # what the memory gives for each token, as it was when the segment began
        parts = [slice(i, min(i + SEGMENT, TOKENS)) for i in range(0, TOKENS, SEGMENT)]
        given = [seen.reading.weights[seen.reading.ends.index(part.start)][0] for part in parts]

        @jit
        def give(block, x, weights):
            state = State(weights, (), weights, jnp.int32(0), initial=block.memory.init_state(1).memory.origin)
            h = block.retrieve(block.retrieve.query(x), state, block.memory)
            return block.projections.split(block.projections.key(h))[0]

        held = ({name: w[None] for name, w in each.items()} for each in given)
        h = [give(block, x[:, part], weights) for part, weights in zip(parts, held, strict=True)]
        of_memory = by_hand(np.concatenate(h), np.arange(TOKENS))
    if projections.persistent is not None:
        front = np.asarray(projections.split(projections.key(projections.persistent[...][None])))[0]
    for t in range(TOKENS):
        first = t - t % SEGMENT if local else max(0, t + 1 - SEGMENT) if config.attention == "sliding" else 0
        at = np.arange(first, t + 1)
        scores = [np.einsum("hd,phd->hp", q[t], front), np.einsum("hd,shd->hs", queries[t], rotated[at])]
        if config.block == "mac":
            scores.append(np.einsum("hd,shd->hs", queries[t], of_memory[at]))
        every = np.exp(np.concatenate(scores, 1) * config.head_dim**-0.5)
        weights = np.split(every / every.sum(1, keepdims=True), np.cumsum([s.shape[1] for s in scores])[:-1], 1)
        np.testing.assert_allclose(shown.tokens[0, :, t, : len(at)], weights[1][:, ::-1], rtol=5e-3, atol=1e-6)
        if config.block == "mac":
            np.testing.assert_allclose(shown.read[0, :, t, : len(at)], weights[2][:, ::-1], rtol=5e-3, atol=1e-6)


def by_hand(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotary positions of x [T, H, D], as complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(
        1j * positions[:, None, None] * 10000.0 ** (-np.arange(half) / half)
    )
    return np.concatenate([turned.real, turned.imag], -1)


@kinds("mac", "mixed")
def test_norms_are_those_of_the_weights(seen):
    reading = seen.reading
    if reading.memory is None:
        assert not reading.weights[0]
        return
    chunk = seen.model.config.memory.chunk
    assert reading.ends == [*range(0, TOKENS, chunk), TOKENS]
    for end, weights in zip(reading.ends[1:], reading.weights[1:], strict=True):
        for layer, memory in weights.items():
            by_hand = np.sqrt(sum(np.square(w).sum((1, 2)) for w in memory.values()))
            np.testing.assert_allclose(reading.memory.info.weight_norm[layer, :, end - 1], by_hand, rtol=1e-5)
    without = [layer for layer in range(2) if layer not in reading.weights[0]]
    assert np.isnan(reading.memory.change[without]).all() and np.isnan(reading.memory.info.rate[without]).all()


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["lmm"], indirect=True)
def test_a_change_is_of_one_token(seen):
    reading = seen.reading  # its chunk is 1: the weights were kept after every token
    for t in range(TOKENS):
        for layer, before in reading.weights[t].items():
            moved = [np.square(reading.weights[t + 1][layer][name] - w).sum((1, 2)) for name, w in before.items()]
            np.testing.assert_allclose(reading.memory.change[layer, :, t], np.sqrt(sum(moved)), rtol=1e-4, atol=1e-6)
    x = seen.model.embed(jnp.asarray(seen.tokens)[None], jnp.arange(TOKENS)[None])
    block = jax.tree.map(lambda x: x[0], seen.model.blocks[0])
    layer = block.memory
    (q, k, v), _ = layer.qkv(block.norm(x), layer.init_state(1).conv, jnp.arange(TOKENS)[None])
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    close(reading.memory.query[0], q[0])
    close(reading.memory.key[0], k[0])
    close(reading.memory.value[0], v[0])


def test_the_model_itself_is_left_as_it_was():
    graphdef, shapes = abstract(LM, KINDS["transformer"])
    model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_params(shapes)))
    assert isinstance(watch(model).blocks[0], Watched)
    assert not isinstance(model.blocks[0], Watched)
    with pytest.raises(ValueError, match="nothing to read"):
        read(model, [])
