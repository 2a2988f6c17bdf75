"""Products of factors rounded to bfloat16: what they are, that all of a chunk's are, and that nothing else is."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.jaxprs import equations
from tests.laws import close, same
from titans_jax.memory import PRESETS, Gates, Memory, miras
from titans_jax.memory.matmul import rounded

DIM, CHUNK, LENGTH = 8, 4, 12
SPECS = {"ti,io->to": ((5, 7), (7, 3)), "ti,ji->tj": ((5, 7), (4, 7)), "ti,to->io": ((5, 7), (5, 3))}


def short(x: Any) -> np.ndarray:
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("spec", SPECS)
def test_a_product_and_its_gradients_are_those_of_rounded_factors(spec: str) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in SPECS[spec])
    got, back = jax.vjp(lambda x, y: rounded(spec, x, y), x, y)
    g = rng.normal(size=got.shape).astype(np.float32)
    of_x, of_y, out = spec.replace("->", ",").split(",")
    want = (
        np.einsum(spec, short(x), short(y)),
        np.einsum(f"{out},{of_y}->{of_x}", short(g), short(y)),
        np.einsum(f"{of_x},{out}->{of_y}", short(x), short(g)),
    )
    close((got, *back(g)), want, 1e-6)
    assert np.abs(got - np.einsum(spec, x, y)).max() > 1e-3, "nothing was rounded"


def made(rule: str, matmul_dtype: str = "bfloat16") -> tuple[Memory, tuple[Any, ...]]:
    preset = PRESETS[rule](DIM)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (LENGTH, DIM)) for key in keys[:3])
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    gates = Gates(*(jnp.full(LENGTH, x) for x in (0.01, 0.9, 0.99)))
    weights = jax.tree.map(lambda w: w + 0.1, preset.architecture.init(keys[3]))  # which may begin at zero
    return miras(preset, chunk=CHUNK, matmul_dtype=matmul_dtype), (weights, q, k, v, gates)


def quick(run: Any) -> Any:
    return jax.jit(run, compiler_options=QUICK)


def written(memory: Memory, weights: Any, *tokens: Any) -> Any:
    return memory.update(memory.init(weights), *tokens, valid=np.ones(LENGTH, bool))


RULES = ("titans", "gated_deltanet", "dgd")  # by chunked, exact and delta


@pytest.mark.parametrize("rule", RULES)
def test_a_memory_is_near_the_one_that_rounds_nothing(rule: str) -> None:
    results = {}
    for dtype in ("float32", "bfloat16"):
        memory, arguments = made(rule, dtype)
        y, state, info = quick(functools.partial(written, memory))(*arguments)
        objective = lambda *a, memory=memory: jnp.square(written(memory, *a)[0]).sum()
        results[dtype] = y, state, info, quick(jax.grad(objective, (0, 1, 2, 3, 4)))(*arguments)
    close(results["bfloat16"], results["float32"], 0.03)
    assert np.abs(results["bfloat16"][0] / results["float32"][0] - 1).max() > 1e-3, "nothing was rounded"
    assert {x.dtype for x in jax.tree.leaves(results["bfloat16"])} == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_kept_is_not_rounded(rule: str) -> None:
    """Nothing is written: weights decay as they do in float32, to the last bit."""
    states = []
    for dtype in ("float32", "bfloat16"):
        memory, (weights, q, k, v, gates) = made(rule, dtype)
        silent = gates._replace(rate=jnp.zeros(LENGTH))
        states.append(quick(functools.partial(written, memory))(weights, q, k, v, silent)[1])
    same(states[1], states[0])
    assert not np.array_equal(short(jax.tree.leaves(states[0].dual)[0]), jax.tree.leaves(states[0].dual)[0])


def test_every_product_of_a_chunk_has_factors_of_bfloat16_forward_and_backward() -> None:
    memory, arguments = made("titans")
    objective = lambda *a: jnp.square(written(memory, *a)[0]).sum()
    traced = jax.make_jaxpr(jax.grad(objective, (0, 1, 2, 3, 4)))(*arguments).jaxpr
    found = [e for e in equations(traced) if e.primitive.name == "dot_general" and e.outvars[0].aval.ndim > 1]
    wide = [e for e in found if max(max(x.aval.shape) for x in e.invars) >= DIM]  # those of decays are of 2 x 2
    assert len(wide) > 30
    for e in wide:
        assert {x.aval.dtype for x in e.invars} == {jnp.dtype("bfloat16")} and e.outvars[0].aval.dtype == jnp.float32


@pytest.mark.slow
def test_gradients_of_gradients() -> None:
    memory, (weights, *tokens) = made("titans")

    def second(memory: Memory) -> Any:
        slope = jax.grad(lambda w: jnp.square(written(memory, w, *tokens)[0]).sum())
        return quick(jax.grad(lambda w: sum(jnp.square(x).sum() for x in jax.tree.leaves(slope(w)))))(weights)

    close(second(memory), second(made("titans", "float32")[0]), 0.05)


def test_what_rounds_nothing_says_so() -> None:
    with pytest.raises(NotImplementedError, match="recurrent is the reference and rounds no factor"):
        miras(PRESETS["titans"](DIM), chunk=CHUNK, implementation="recurrent", matmul_dtype="bfloat16")
    with pytest.raises(ValueError, match="matmul_dtype: 'float8'; known are float32, bfloat16"):
        miras(PRESETS["titans"](DIM), chunk=CHUNK, matmul_dtype="float8")
