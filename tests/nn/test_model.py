"""The model's parameters: names, sizes, axes; NNX's two modes; compile time."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import BATCH, FEW, MEMBERS, TOKENS, Subject, abstract, config_of, jit, label, name_of, subject
from titans_jax.nn import LM, MemoryConfig, ModelConfig

LAST_NAMES = {"kernel", "bias", "scale", "taps", "embedding", "persistent", "mix"}
AXES = {"batch", "embed", "heads", "hidden", "vocab", None}


@pytest.fixture(scope="module")
def mac() -> Subject:
    return subject(config_of(next(row for row in FEW if row["block"] == "mac")))


@pytest.mark.parametrize("row", MEMBERS, ids=label)
def test_parameters_have_known_names_and_axes(row):
    """Weight decay is by name: decide it for a parameter with a new name, then add the name here."""
    _, shapes = abstract(LM, config_of(row))
    for path, variable in jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        name = name_of(path)
        assert name.rpartition("/")[2] in LAST_NAMES or "/fast/" in name, name
        axes, (x,) = variable.get_metadata()["axes"], jax.tree.leaves(variable)
        assert set(axes) <= AXES and len(axes) == x.ndim - name.startswith("blocks/"), name
        assert x.dtype == np.float32 and x.size > 0, name


def test_head_sizes_need_not_divide_the_width():
    """3 heads of size 24 with width 128."""
    memory = MemoryConfig(chunk=8, heads=5, head_dim=12)
    config = ModelConfig(block="transformer,mac", dim=128, depth=2, heads=3, head_dim=24, segment=16, memory=memory)
    graphdef, shapes = abstract(LM, config)
    sizes = {name_of(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    assert sizes["blocks/0/attention/projections/query/kernel"] == (1, 128, 3 * 24)
    assert sizes["blocks/1/memory/qkv/linear/kernel"] == (1, 128, 3 * 5 * 12)

    def run(params):
        model = nnx.merge(graphdef, params)
        return model(np.zeros((2, 40), np.int32), model.init_state(2))

    logits, _, info = jax.eval_shape(run, shapes)
    assert logits.shape == (2, 40, 256) and info.rate.shape == (1, 2, 5, 40)


def test_unstacked_layers_are_the_same_model():
    """Token by token, from the state of the stacked model: equal logits, and equal info in the order of layers."""
    row = {"block": "transformer,mac", "residual": "value", "positions": "rope"}
    stacked = subject(dataclasses.replace(config_of(row | {"rule": "titans_linear"}), depth=4))
    model = nnx.merge(stacked.graphdef, stacked.params)
    text = np.arange(BATCH * TOKENS, dtype=np.int32).reshape(BATCH, TOKENS) % 32
    _, state, _ = stacked.call(text[:, :13], stacked.start)
    one_by_one = model.by_layer()
    graphdef, params = nnx.split(one_by_one)
    assert len(params["model"]["blocks"]) == 4
    step = jit(lambda params, token, state: nnx.merge(graphdef, params)(token, state))
    unstacked = model.state_by_layer(state)
    initial = model.state_by_layer(stacked.start), one_by_one.init_state(BATCH)
    jax.tree.map(np.testing.assert_array_equal, *initial)
    assert {x.shape[0] for x in jax.tree.leaves(initial[1].blocks) if x.ndim} == {BATCH}  # no axis of layers
    for token in text.T[13:20]:
        want, state, seen = stacked.call(token[:, None], state)
        got, unstacked, info = step(params, token[:, None], unstacked)
        np.testing.assert_allclose(got, want, atol=2e-6)
        np.testing.assert_allclose(info.surprise, seen.surprise, rtol=1e-5)
    assert np.ptp(np.asarray(seen.surprise)[:, 0, 0, 0]) > 1e-3  # layers can be told apart


@pytest.mark.slow
def test_info_belongs_to_its_tokens(mac):
    model, text = mac, np.arange(BATCH * TOKENS, dtype=np.int32).reshape(BATCH, TOKENS) % 32
    _, _, info = model.call(text, model.start)
    whole = jax.device_get(info)
    assert {x.shape for x in whole} == {(2, BATCH, 2, TOKENS)}
    state, parts = model.start, []
    for piece in np.split(text, [13, 26, 39], axis=1):
        _, state, info = model.call(piece, state)
        parts.append(jax.device_get(info))
    # norms are of the call's last token in a chunk, so only quantities of single tokens can be compared
    for name in ("surprise", "grad_norm", "rate", "momentum", "keep"):
        pieces = np.concatenate([getattr(part, name) for part in parts], -1)
        np.testing.assert_allclose(pieces, getattr(whole, name), rtol=1e-4, atol=1e-5, err_msg=name)
    assert (whole.rate > 0).all() and (whole.rate < 0.1).all() and (whole.surprise > 0).all()


@pytest.mark.parametrize("graph", [True, False])
def test_nnx_graph_mode_and_tree_mode_agree(graph, mac):
    """Building, splitting, merging and calling give the same program in both modes."""
    text = np.zeros((BATCH, TOKENS), np.int32)

    def program(graphdef) -> str:
        run = lambda params, text, state: nnx.merge(graphdef, params)(text, state)
        return str(jax.make_jaxpr(run)(mac.params, text, mac.start))

    with nnx.set_graph_mode(graph):
        graphdef, params = nnx.split(jax.eval_shape(lambda: LM(mac.config, rngs=nnx.Rngs(0))))
        again, _ = nnx.split(nnx.merge(graphdef, params))
        assert graphdef == again and hash(graphdef) == hash(again)  # it is a static argument
        assert program(graphdef) == program(mac.graphdef)
        module = jax.eval_shape(lambda model: model(text, mac.start), nnx.merge(graphdef, mac.params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), module[1]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), mac.start
    )


def test_scanned_and_unrolled_layers_agree(monkeypatch):
    model = subject(config_of({"block": "mac", "residual": "both", "rule": "titans_linear", "persistent": 0}))
    text = np.arange(BATCH * 20, dtype=np.int32).reshape(BATCH, 20) % 32  # the third segment is not whole

    def found(unrolled: int):
        monkeypatch.setattr("titans_jax.nn.model.UNROLLED", unrolled)

        def loss(params):
            logits, state, info = nnx.merge(model.graphdef, params)(text, model.start)
            return (logits**2).mean(), (logits, state, info)

        traced = jit(jax.grad(loss, has_aux=True)).trace(model.params)
        return str(traced.jaxpr), traced.lower().compile()(model.params)

    (loop, scanned), (straight, written) = found(1), found(2)
    assert loop != straight
    for own, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(written), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["mac", "transformer"])
def test_the_compiled_program_does_not_grow_with_depth(block):
    """More than UNROLLED layers are one loop, which is compiled once; so the time to compile does not grow either."""

    def lines(depth: int) -> int:
        config = dataclasses.replace(config_of({"block": block}), depth=depth)
        graphdef, shapes = abstract(LM, config)

        def loss(params, text):
            model = nnx.merge(graphdef, params)
            return (model(text, model.init_state(BATCH))[0] ** 2).mean()

        lowered = jit(jax.grad(loss)).lower(shapes, jax.ShapeDtypeStruct((BATCH, TOKENS), np.int32))
        return len(lowered.compile().as_text().splitlines())

    assert lines(24) == pytest.approx(lines(6), rel=0.01)
