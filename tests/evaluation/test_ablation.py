"""Cutting parts out: what is cut is cut, the rest is whole, and the numbers are those of the two predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import abstract, jit, name_of, random_params
from titans_jax.evaluation import ablate
from titans_jax.evaluation.ablation import without
from titans_jax.evaluation.introspect import fast_weights
from titans_jax.nn import LM, MemoryConfig, ModelConfig

MEMORY = MemoryConfig(rule="linear_attention", chunk=4, heads=2, head_dim=8)
SMALL = dict(dim=16, depth=2, heads=2, head_dim=8, segment=8, window=8, vocab_size=32, memory=MEMORY)


@pytest.fixture(scope="module")
def mixed():
    graphdef, shapes = abstract(LM, ModelConfig("transformer,lmm", **SMALL, persistent=0))
    return graphdef, jax.tree.map(jnp.asarray, random_params(shapes))


def test_cost_of_doing_without(mixed):
    graphdef, params = mixed
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.integers(0, 32, (2, 12), np.int32),
        "targets": rng.integers(0, 32, (2, 12), np.int32),
        "mask": (np.arange(12) < [[12], [7]]).astype(np.float32),
    }
    found = ablate(nnx.merge(graphdef, params), batch)
    assert list(found) == ["learning", "reading", "attention"]  # no MAC, no context
    assert found["reading"]["loss"][0] is None and found["reading"]["divergence"][0] is None  # no memory there

    run = jit(lambda params: jax.nn.log_softmax(_logits(graphdef, params, batch["inputs"])))
    cut = nnx.clone(nnx.merge(graphdef, params))
    cut.blocks[1].memory.out.kernel[...] = jnp.zeros_like(cut.blocks[1].memory.out.kernel[...])
    p, q = (np.asarray(run(some), np.float64) for some in (params, nnx.split(cut)[1]))
    count = batch["mask"].sum()
    divergence = ((np.exp(p) * (p - q)).sum(-1) * batch["mask"]).sum() / count
    loss = (np.take_along_axis(p - q, batch["targets"][..., None], -1)[..., 0] * batch["mask"]).sum() / count
    assert found["reading"]["divergence"][1] == pytest.approx(divergence, rel=1e-3)
    assert found["reading"]["loss"][1] == pytest.approx(loss, rel=1e-3)
    assert divergence > 1e-3
    assert found["attention"]["divergence"][0] > 0 and found["attention"]["divergence"][1] is None


def _logits(graphdef, params, tokens):
    model = nnx.merge(graphdef, params)
    return model(tokens, model.init_state(len(tokens)))[0]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["titans", "hgrn2"])
def test_without_learning_the_memory_of_one_layer_stays(rule):
    memory = MemoryConfig(rule=rule, chunk=4, heads=2, head_dim=8)
    config = ModelConfig("lmm", **SMALL | {"memory": memory})
    graphdef, shapes = abstract(LM, config)
    params = jax.tree.map(jnp.asarray, random_params(shapes))

    @jit
    def states(params, whole):
        state = nnx.merge(graphdef, whole).init_state(1)
        return state, nnx.merge(graphdef, params)(jnp.arange(11)[None], state)[1]

    model = nnx.merge(graphdef, params)
    first, last = (fast_weights(model, state) for state in states(without(params, "learning", 1, ("lmm",)), params))
    for name in first[0]:
        np.testing.assert_array_equal(first[1][name], last[1][name])
        assert np.abs(first[0][name] - last[0][name]).max() > 1e-4


def test_only_the_part_is_cut(mixed):
    params = mixed[1]
    cut = without(params, "attention", 0, ("transformer", "lmm"))
    changed = {
        name_of(path)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(cut), strict=True)
        if (np.asarray(x) != np.asarray(y)).any()
    }
    assert changed == {"blocks/0/attention/projections/out/kernel"}
    assert without(params, "context", 1, ("transformer", "lmm")) is None
