"""A layer of titans-pytorch 0.5.5 without a memory, as a block of ours: against NumPy and, slow lane, torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from titans_jax import interop
from titans_jax.nn import ModelConfig
from titans_jax.nn.blocks import Activations, Transformer

DIM, HEADS, SIZE, HIDDEN, SEGMENT, LENGTH = 12, 3, 4, 16, 4, 11
every_kind = pytest.mark.parametrize("sliding", [False, True], ids=["segmented", "sliding"])


def random_layer(dtype=np.float32):
    """The state dicts of an attention and a feed-forward as torch has them."""
    draw = np.random.default_rng(0).standard_normal
    attention = {
        "norm.weight": 1 + draw(DIM) / 4,
        "to_qkv.weight": draw((3 * HEADS * SIZE, DIM)) / DIM**0.5 * 2,
        "to_out.weight": draw((DIM, HEADS * SIZE)) / DIM**0.5,
        "persistent_memory": np.zeros((2, HEADS, 0, SIZE)),
        "rotary_emb.freqs": 10000.0 ** (-np.arange(0, SIZE, 2) / SIZE),
    }
    feed_forward = {
        "0.weight": 1 + draw(DIM) / 4,
        "1.weight": draw((2 * HIDDEN, DIM)) / DIM**0.5,
        "1.bias": np.zeros(2 * HIDDEN),
        "3.weight": draw((DIM, HIDDEN)) / HIDDEN**0.5,
        "3.bias": np.zeros(DIM),
    }
    return tuple({name: array.astype(dtype) for name, array in part.items()} for part in (attention, feed_forward))


def inputs():
    return np.random.default_rng(1).standard_normal((2, LENGTH, DIM)).astype(np.float32)


def ours(params, x, sliding):
    kind = dict(attention="sliding", window=SEGMENT + 1) if sliding else dict(attention="segmented", segment=SEGMENT)
    sizes = dict(dim=DIM, depth=1, heads=HEADS, head_dim=SIZE, ff_mult=HIDDEN / DIM, persistent=0)
    block = Transformer(ModelConfig("transformer", **sizes, **kind), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(block)
    shapes = jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(state))
    assert jax.tree.map(lambda x: x.shape, params) == shapes

    @jax.jit
    def call(params, x):
        block = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
        age = jnp.broadcast_to(jnp.arange(LENGTH), x.shape[:2])
        return block(Activations(x, age, None, None, None), block.init_state(len(x)))[0].x

    return np.asarray(call(params, x))


def by_hand(attention, feed_forward, x, sliding):
    """One token and one head at a time, in float64, with torch's names and torch's order of things."""
    state = {name: np.asarray(array, np.float64) for name, array in {**attention, **feed_forward}.items()}
    out = np.zeros(x.shape)
    for row, tokens in enumerate(np.asarray(x, np.float64)):
        seen = [(state["to_qkv.weight"] @ rms(token, state["norm.weight"])).reshape(3, HEADS, SIZE) for token in tokens]
        for t, token in enumerate(tokens):
            first = max(0, t - SEGMENT) if sliding else t // SEGMENT * SEGMENT
            reads = []
            for head in range(HEADS):
                query = turned(seen[t][0, head], t, state)
                keys = [turned(seen[i][1, head], i, state) for i in range(first, t + 1)]
                weights = np.exp([query @ key / SIZE**0.5 for key in keys])
                reads.append(weights / weights.sum() @ [seen[i][2, head] for i in range(first, t + 1)])
            token = token + state["to_out.weight"] @ np.concatenate(reads)
            value, gate = np.split(state["1.weight"] @ rms(token, state["0.weight"]), 2)
            out[row, t] = token + state["3.weight"] @ (gate / (1 + np.exp(-gate)) * value)
    return out


def rms(x, gain):
    return x / np.sqrt(np.mean(x * x) + 1e-7) * gain


def turned(x, t, state):
    angle = t * state["rotary_emb.freqs"]
    a, b = x[::2], x[1::2]
    return np.stack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1).ravel()


@every_kind
def test_a_block_computes_what_the_layer_computes(sliding):
    layer, x = random_layer(), inputs()
    params = interop.layer_from_titans_pytorch(*layer, heads=HEADS)
    np.testing.assert_allclose(ours(params, x, sliding), by_hand(*layer, x, sliding), atol=1e-5)


def test_a_layers_state_dicts_return_unchanged():
    layer = random_layer()
    back = interop.layer_to_titans_pytorch(interop.layer_from_titans_pytorch(*layer, heads=HEADS), heads=HEADS)
    for part, again in zip(layer, back, strict=True):
        assert part.keys() == again.keys()
        for name, array in part.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("part", "name", "array", "message"),
    [
        (0, "persistent_memory", np.ones((2, HEADS, 1, SIZE)), "persistent_memory is not empty"),
        (1, "3.bias", np.ones(DIM), "3.bias is not zero"),
        (0, "to_learned_v_mix.0.weight", np.ones((HEADS, DIM)), "to_learned_v_mix.0.weight belongs to a layer that"),
        (0, "rotary_emb.freqs", np.ones(SIZE // 2), "rotary_emb.freqs are not"),
        (0, "to_qkv.weight", np.ones((33, DIM)), "to_qkv: 33 rows cannot be queries"),
    ],
)
def test_refuses_a_layer_that_computes_something_else(part, name, array, message):
    layer = random_layer()
    layer[part][name] = array
    with pytest.raises(ValueError, match=message):
        interop.layer_from_titans_pytorch(*layer, heads=HEADS)


def test_refuses_persistent_tokens():
    params = interop.layer_from_titans_pytorch(*random_layer(), heads=HEADS)
    params["attention"]["projections"]["persistent"] = np.ones((2, DIM))
    with pytest.raises(ValueError, match="persistent: titans-pytorch computes it differently"):
        interop.layer_to_titans_pytorch(params, heads=HEADS)


@pytest.mark.slow
@every_kind
def test_torch_computes_what_the_block_computes(sliding):
    """With weights made here, which torch loads; so with the test by hand the layer is compared both ways."""
    torch = pytest.importorskip("torch", reason="needs the extra: pip install titans-jax[parity]")
    mac = pytest.importorskip(
        "titans_pytorch.mac_transformer", reason="needs the extra: pip install titans-jax[parity]"
    )
    params = interop.layer_from_titans_pytorch(*random_layer(), heads=HEADS)
    attention = mac.SegmentedAttention(DIM, SEGMENT, dim_head=SIZE, heads=HEADS, sliding=sliding)
    feed_forward = mac.FeedForward(DIM, HIDDEN * 3 / 2 / DIM)
    for module, state in zip(
        (attention, feed_forward), interop.layer_to_titans_pytorch(params, heads=HEADS), strict=True
    ):
        module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)
    x = torch.from_numpy(inputs())
    with torch.no_grad():
        x = x + attention(x)[0]
        x = x + feed_forward(x)
    np.testing.assert_allclose(ours(params, inputs(), sliding), x.numpy(), atol=1e-5)
