"""Law 13 for models: a stream near 2^31 tokens gives the logits of the same stream with small counters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiling import QUICK
from titans_jax.memory.stream import MOST
from titans_jax.nn import LM, CMSConfig, MemoryConfig, MemoryLayer, ModelConfig
from titans_jax.nn.inner_loop import InnerLoop

MEMORY = dict(heads=1, head_dim=4, chunk=3)
SIZES = dict(dim=8, depth=1, heads=1, head_dim=4, vocab_size=16, segment=6, window=5, context=12, persistent=1)
FAST = ("mag", "mac", "hope_attention")
PERIOD = 12  # of chunks, segments, positions and CMS periods; it does not divide 2^31
CASES = {
    "mag": dict(memory=dict(rule="deltanet")),
    "mac": dict(memory=dict(rule="deltanet")),
    "lmm": dict(memory=dict(rule="deltaproduct")),
    "mac tnt": dict(memory=dict(local_chunks=(3,), shard=3, rule="deltanet")),
    "transformer": dict(attention="segmented"),
    "mal": dict(positions="learned"),
    "hope_attention": dict(cms=CMSConfig(periods=(4, 12))),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_a_model_near_the_end_of_int32_answers_as_before(name: str) -> None:
    small, end = logits_from((PERIOD + 7, 2**31 - 2 * PERIOD - 8 + 7), name, CASES[name])
    np.testing.assert_array_equal(small, end)


def test_axial_positions_go_on_from_where_their_count_stops() -> None:
    """Their segment's index stops, and its place goes on."""
    stopped, end = logits_from((MOST + 8 + 7, 2**31 - 32 + 7), "transformer", dict(positions="axial"))
    np.testing.assert_array_equal(stopped, end)
    assert np.isfinite(end).all()


def logits_from(counts: tuple[int, ...], name: str, options: dict) -> list[np.ndarray]:
    """Logits of 29 tokens in calls of 7, 1, 7, 7, 7, after 7 tokens, with every counter at each of the counts."""
    memory = MemoryConfig(**MEMORY | options.get("memory", {}))
    config = ModelConfig(block=name.split()[0], **SIZES | options | dict(memory=memory))
    model = (InnerLoop if config.learns_inside else LM)(config, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    call = jax.jit(lambda tokens, state: nnx.merge(graphdef, params)(tokens, state)[:2], compiler_options=QUICK)
    text = np.random.default_rng(0).integers(0, 16, (1, 36))
    start = jax.tree.map(jnp.asarray, jax.jit(lambda: nnx.merge(graphdef, params).init_state(1))())
    _, first = call(text[:, :7], start)

    def read(count: int) -> np.ndarray:
        def at(path: tuple, leaf: jax.Array) -> jax.Array:
            counts = jax.tree_util.keystr(path[-1:], simple=True) in ("step", "age") and "local" not in str(path)
            return jnp.full_like(leaf, count) if counts else leaf

        state, found = jax.tree_util.tree_map_with_path(at, first), []
        for part in np.split(text[:, 7:], [7, 8, 15, 22], 1):
            logits, state = call(part, state)
            found.append(logits)
        return np.concatenate(found, 1)

    return [read(count) for count in counts]


def test_a_layer_s_age_does_not_wrap() -> None:
    layer = MemoryLayer(8, "deltanet", chunk=3, heads=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 12, 8))
    _, state = layer(x[:, :7])
    late = state._replace(age=jnp.full(1, 2**31 - 3, jnp.int32))
    np.testing.assert_array_equal(layer(x[:, 7:], late)[0], layer(x[:, 7:], state)[0])
