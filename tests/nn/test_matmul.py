"""`model.memory.matmul_dtype` rounds the products of every kind of layer; causality and streaming still hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.jaxprs import equations
from tests.nn.members import BATCH, SEGMENT, abstract, config_of, subject
from tests.nn.test_laws import in_pieces, read, same, tokens
from titans_jax.nn import LM

LAYERS = {
    "lmm": dict(block="lmm"),
    "mac": dict(block="mac"),
    "tnt": dict(block="lmm", chunk=8, shard=4, local_chunks=(2,)),
    "hope": dict(block="hope"),
}


def rounds(jaxpr):
    """Whether a jaxpr has a bfloat16 result."""
    return any(x.aval.dtype == jnp.bfloat16 for e in equations(jaxpr) for x in e.outvars if hasattr(x.aval, "dtype"))


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS)
def test_every_kind_of_layer_rounds_to_bfloat16(row):
    for dtype in ("float32", "bfloat16"):
        graphdef, shapes = abstract(LM, config_of(row | {"matmul_dtype": dtype}, depth=1))

        def read(params, graphdef=graphdef):
            model = nnx.merge(graphdef, params)
            return model(tokens(length=2 * SEGMENT), model.init_state(BATCH), aligned=True)[0]

        assert rounds(jax.make_jaxpr(read)(shapes).jaxpr) == (dtype != "float32")


def test_causal_exactly_and_streamed_within_rounding():
    config = config_of(LAYERS["lmm"] | {"matmul_dtype": "bfloat16"}, depth=1)
    model, text, changed = subject(config), tokens(), tokens()
    changed[:, 21:] = tokens(seed=2)[:, 21:]
    (logits, _), (other, _) = read(model, text), read(model, changed)
    same(other[:, :21], logits[:, :21])
    pieces, _ = in_pieces(model, text, [13, 13, 13, 1])
    exact, _ = read(subject(config_of(LAYERS["lmm"], depth=1)), text)
    for got in (pieces, exact):
        assert np.abs(got - logits).mean() < 0.05 * np.abs(exact).mean()
    assert not np.array_equal(logits, exact)
