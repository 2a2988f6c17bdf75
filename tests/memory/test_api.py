"""Errors at the boundary: one line that says what was wrong and what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.memory import Architecture, Gates, learner, miras, presets

RULE = presets.titans(4)
SHAPES = {"w1": (4, 16), "w2": (16, 4)}


FRESH_WINDOW = presets.deltanet(4)._replace(learner=learner.gradient_descent("previous", window=2))


def call(memory=None, q=(6, 4), k=(6, 4), v=(6, 4), rate=(6,), momentum=(6,), keep=(6,), **more):
    memory = memory or miras(RULE, chunk=3)
    state = jax.eval_shape(lambda: memory.init(RULE.architecture.init(jax.random.key(0))))
    q, k, v, *gates = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (q, k, v, rate, momentum, keep))
    return jax.eval_shape(lambda *a: memory.update(*a, **more), state, q, k, v, Gates(*gates))


def test_right_shapes_pass() -> None:
    assert call()[0].shape == call(keep=(6, 4))[0].shape == (6, 4)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"k": (2, 6, 4)}, "each must be \\[T, D\\]"),
        ({"q": (5, 4)}, "each must be \\[T, D\\]"),
        ({"v": (7, 4)}, "each must be \\[T, D\\]"),
        ({"v": (6, 1)}, "each must be \\[T, D\\]"),
        ({"q": (6,)}, "each must be \\[T, D\\]"),
        ({"rate": (6, 4)}, "gates.rate: shape \\(6, 4\\); it must be \\[6\\]"),
        ({"rate": ()}, "gates.rate"),
        ({"momentum": (5,)}, "gates.momentum"),
        ({"keep": (6, 3)}, "gates.keep: .* or \\[T, D\\]"),
    ],
)
def test_wrong_shapes(wrong, says) -> None:
    with pytest.raises(ValueError, match=says):
        call(**wrong)


def test_valid_off_the_grid() -> None:
    with pytest.raises(ValueError, match="valid: shape \\(7,\\) for 7 rows; .* a multiple of the chunk 3"):
        call(q=(7, 4), k=(7, 4), v=(7, 4), rate=(7,), momentum=(7,), keep=(7,), valid=np.ones(7, bool))


def test_a_chunk_is_an_integer() -> None:
    with pytest.raises(ValueError, match="chunk: 8.0 tokens; it must be an integer, at least 1"):
        miras(RULE, chunk=8.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunks", [2, 4])
def test_residual_of_another_number_of_chunks(chunks: int) -> None:
    """Six tokens touch three chunks of 3 at most, and on the grid two."""
    right, wrong = ({n: jnp.zeros((c, *s)) for n, s in SHAPES.items()} for c in (3, chunks))
    assert call(residual=right)[2].anchors["w1"].shape == (3, 4, 16)
    with pytest.raises(ValueError, match=f"residual\\['w1'\\]: {chunks} chunks; the call of 6 rows has 3"):
        call(residual=wrong)
    with pytest.raises(ValueError, match="3 chunks; .* has 2"):
        call(residual=right, valid=np.ones(6, bool))


def test_chunk_longer_than_the_offsets() -> None:
    rule = presets.ttt_linear(4, offsets=[0.0, 0.1, 0.2])
    assert miras(rule, chunk=3)
    with pytest.raises(ValueError, match="chunk: 4 tokens; this learner has offsets for 3 at most"):
        miras(rule, chunk=4)


@pytest.mark.parametrize(
    "choice, says",
    [
        ({"chunk": 0}, "chunk: 0"),
        ({"chunk": -1}, "chunk: -1"),
        ({"chunk": 4, "clip": 0}, "clip: 0"),
        ({"chunk": 4, "clip": -1.0}, "clip: -1.0"),
        ({"chunk": 4, "clip": float("nan")}, "clip: nan"),
        ({"chunk": 4, "implementation": "fast"}, "implementation: 'fast'; known are exact, delta, chunked, recurrent"),
    ],
)
def test_wrong_choices(choice, says) -> None:
    with pytest.raises(ValueError, match=says):
        miras(RULE, **choice)


@pytest.mark.parametrize(
    "rule, implementation, reason",
    [
        (presets.titans(4), "exact", "exact: .*one matrix with a squared loss"),
        (presets.linear_attention(4), "exact", "exact: .*squared loss"),
        (presets.titans_linear(4), "exact", "exact: .*the chunk start"),
        (presets.deltanet(4), "chunked", "chunked: .*previous"),
        (presets.gated_deltanet(4), "chunked", "chunked: .*decayed"),
        (presets.atlas(4, every="token"), "chunked", "chunked: an orthogonalised step at every token"),
        (FRESH_WINDOW, "exact", "exact: .*every window with the token"),
    ],
)
def test_an_implementation_that_cannot_serve_says_why(rule, implementation: str, reason: str) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        miras(rule, chunk=4, implementation=implementation)


def test_a_matrix_applied_twice_is_refused_in_chunks_and_served_by_recurrent() -> None:
    """Its gradient is not rank one: better no answer than a wrong one."""
    twice = Architecture(
        init=lambda key: {"w": jnp.eye(4)}, apply=lambda linear, x: linear("w", jnp.tanh(linear("w", x))), channels={}
    )
    rule = RULE._replace(architecture=twice)

    def run(implementation: str):
        memory = miras(rule, chunk=3, implementation=implementation)
        x, gate = jnp.ones((6, 4)), jnp.full(6, 0.5)
        return jax.eval_shape(memory.update, memory.init({"w": jnp.eye(4)}), x, x, x, Gates(gate, gate, gate))

    with pytest.raises(NotImplementedError, match="'w' twice"):
        run("chunked")
    assert run("recurrent")[0].shape == (6, 4)
