"""A memory as a layer: the mixer's outputs in any split, a state where none is given, errors that name the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from titans_jax.nn import LM, MemoryConfig, MemoryLayer, ModelConfig

B, T, D = 2, 20, 16
X = jax.random.normal(jax.random.key(0), (B, T, D))


@pytest.fixture(scope="module")
def layer():
    return MemoryLayer(D, heads=2, chunk=8, rngs=nnx.Rngs(0))


def test_a_call_without_a_state_is_the_mixer_from_its_start(layer):
    age = jnp.broadcast_to(jnp.arange(T), (B, T))
    want, memory, _, _ = nnx.jit(lambda mixer: mixer(X, mixer.init_state(B), age))(layer.mixer)
    y, state = layer(X)
    np.testing.assert_allclose(y, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.memory, memory)
    assert state.age.tolist() == [T, T] and (np.asarray(y) != 0).any()


@pytest.mark.parametrize("rule", ["titans", "deltanet", "ttt_mlp"])
def test_any_split_gives_the_same_outputs(rule):
    layer = MemoryLayer(D, rule, heads=2, chunk=8, rngs=nnx.Rngs(0))
    whole, state = layer(X)
    first, half = layer(X[:, :13])
    rest, end = layer(X[:, 13:], half)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, atol=2e-4)
    assert (end.age == state.age).all()
    assert np.abs(np.asarray(layer(X[:, 13:])[0] - rest)).max() > 1e-3  # the state matters


def test_a_layer_has_gradients_and_is_traced_inside_other_programs(layer):
    @nnx.jit
    def gradient(layer):
        return nnx.grad(lambda layer: (layer(X)[0] ** 2).sum())(layer)

    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(gradient(layer).mixer.qkv))


def test_outputs_have_the_dtype_of_the_inputs(layer):
    y, state = layer(X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state.memory.memory.dual)} == {jnp.dtype("float32")}


def test_what_there_is_to_see_comes_on_request(layer):
    y, state, info = layer.with_info(X)
    assert info.surprise.shape == (B, 2, T) and (info.rate > 0).all()
    np.testing.assert_array_equal(y, layer(X)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer(X[0]), r"x: shape \(20, 16\); it must be \[batch, tokens, 16\]"),
        (lambda layer: layer(X[..., :8]), r"x: shape \(2, 20, 8\); it must be \[batch, tokens, 16\]"),
        (lambda layer: layer(X[:, :0]), "at least one token"),
        (lambda layer: layer(jnp.ones((B, T, D), int)), "x: dtype int32; it must be floating"),
        (lambda layer: layer(X, layer.init_state(3)), "state: of 3 sequences, but x has 2"),
        (lambda layer: layer(X, (layer.init_state(2),)), "state: tuple; it must be what an earlier call of this layer"),
        (lambda layer: MemoryLayer(D, heads=0, rngs=nnx.Rngs(0)), "heads: 0 do not divide dim 16"),
        (lambda layer: MemoryLayer(D, chunk=8.0, rngs=nnx.Rngs(0)), "model.memory.chunk: 8.0 is not of type int"),
        (lambda layer: MemoryLayer(D, dtype="bfloat", rngs=nnx.Rngs(0)), "model.dtype: 'bfloat' is unknown; known are"),
        (lambda layer: MemoryLayer(D, heads=3, rngs=nnx.Rngs(0)), "heads: 3 do not divide dim 16"),
        (lambda layer: MemoryLayer(D, chunk=0, rngs=nnx.Rngs(0)), "model.memory.chunk: 0; it must be above 0"),
        (lambda layer: MemoryLayer(D, "titan", rngs=nnx.Rngs(0)), "model.memory.rule: 'titan' is unknown"),
    ],
)
def test_what_is_wrong_is_named(layer, call, message):
    with pytest.raises(ValueError, match=message):
        call(layer)


def test_a_model_reads_tokens_without_a_state_and_says_what_is_wrong_with_them():
    memory = MemoryConfig(chunk=8, heads=2, head_dim=8)
    config = ModelConfig("lmm", vocab_size=32, dim=16, depth=1, heads=2, head_dim=8, memory=memory)
    model = LM(config, rngs=nnx.Rngs(0))
    tokens = jnp.arange(12)[None]
    call = nnx.jit(lambda model, *arguments: model(*arguments)[0])
    np.testing.assert_allclose(call(model, tokens), call(model, tokens, model.init_state(1)), atol=1e-5)
    for wrong, message in (
        (tokens[0], r"tokens: int32 of shape \(12,\); they must be integers \[batch, tokens\]"),
        (tokens * 1.0, "tokens: float32 of shape"),
        (tokens + 25, "tokens: from 25 to 36; the vocabulary is from 0 to 31"),
        (tokens - 1, "tokens: from -1 to 10; the vocabulary is from 0 to 31"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong)
    with pytest.raises(ValueError, match="state: of 2 sequences, but tokens has 1"):
        model(tokens, model.init_state(2))
