"""NeuralMemory of titans-pytorch 0.5.5: what we compute against a token loop by hand, and against torch (slow lane)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.tolerance import SEEDS, as_precise
from titans_jax import interop
from titans_jax.bench.torch_peer import neural_memory

DIM = 16
RATE_MAX = 0.25  # at 0.5 some of these memories grow to 1e11, and float32 shows it


class Case(NamedTuple):
    heads: int
    depth: int
    chunk: int
    length: int


CASES = (
    Case(1, 1, 8, 24),
    Case(1, 2, 8, 27),
    Case(4, 2, 4, 19),
    Case(4, 3, 4, 16),
    Case(2, 1, 32, 9),
    Case(4, 2, 1, 6),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "heads{}-depth{}-chunk{}-length{}".format(*case))


def random_state(case, seed=0, dtype=np.float32):
    """A state dict with heads that differ, unit queries and keys, slow forgetting."""
    draw = np.random.default_rng(seed).standard_normal
    heads, head = case.heads, DIM // case.heads
    state = {f"{name}_norm.gamma": np.full((heads, 1, head), head**-0.5 - 1) for name in "qk"}
    state |= {f"to_{name}.0.weight": draw((DIM, DIM)) / DIM**0.5 for name in ("queries", "keys", "values")}
    for name, start in (("adaptive_step", 0.0), ("momentum", 0.0), ("decay_factor", -3.0)):
        state |= {f"to_{name}.0.weight": draw((heads, DIM)) / DIM**0.5, f"to_{name}.0.bias": draw(heads) / 4 + start}
    if heads > 1:
        state |= {"retrieve_gate.0.weight": draw((heads, DIM)), "combine_heads.weight": draw((DIM, DIM))}
    sizes = [head, *[4 * head] * (case.depth - 1), head]
    for i, shape in enumerate(zip(sizes, sizes[1:], strict=False)):
        state[f"memory_model.weights.{i}"] = draw(shape)
        state[f"memory_model_parameters.{i}"] = draw((heads, *shape)) / shape[0] ** 0.5
    return {name: array.astype(dtype) for name, array in state.items()}


def inputs(case, seed=1):
    return np.random.default_rng(seed).standard_normal((2, case.length, DIM))


@functools.partial(jax.jit, static_argnames="chunk")
def outputs(weights, x, chunk):
    return interop.neural_memory(weights, x, chunk=chunk, rate_max=RATE_MAX)


@functools.cache
def gradient(chunk):
    def loss(weights, x):
        y = outputs(weights, x, chunk)
        return jnp.sum(y**2), y

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)


def jax_values(state, x, chunk):
    """Outputs, and the gradients of sum(outputs^2) with respect to x and every weight, in the weights' precision."""
    weights = interop.from_titans_pytorch(state)
    (by_weights, by_x), y = gradient(chunk)(weights, x.astype(weights.query.dtype))
    return np.asarray(y), np.asarray(by_x), interop.to_titans_pytorch(by_weights)


def by_hand(state, x, case, eps):
    """Titans Eq 11-15 with gradients at the chunk's start, one token and one head at a time, in float64 NumPy."""
    state = {name: np.asarray(value, np.float64) for name, value in state.items()}
    y = np.zeros((*x.shape[:2], case.heads, DIM // case.heads))
    for row in range(x.shape[0]):
        for head in range(case.heads):
            weights = [state[f"memory_model_parameters.{i}"][head] for i in range(case.depth)]
            momentum = [np.zeros_like(w) for w in weights]
            anchor = weights
            for t, token in enumerate(x[row]):
                if t % case.chunk == 0:
                    anchor = weights
                q, k, v, rate, eta, forget = projections(state, token, head, case, eps)
                gradient = memory_gradient(anchor, k, v)
                momentum = [eta * s - rate * g for s, g in zip(momentum, gradient, strict=True)]
                weights = [(1 - forget) * w + s for w, s in zip(weights, momentum, strict=True)]
                y[row, t, head] = memory_layers(weights, q)[0][-1]
    if case.heads == 1:
        return y[:, :, 0]
    gated = y * sigmoid(x @ state["retrieve_gate.0.weight"].T)[..., None]
    return gated.reshape(x.shape) @ state["combine_heads.weight"].T


def projections(state, token, head, case, eps):
    part = slice(head * DIM // case.heads, (head + 1) * DIM // case.heads)
    q, k, v = (token @ state[f"to_{name}.0.weight"][part].T for name in ("queries", "keys", "values"))
    q, k, v = (z * sigmoid(z) for z in (q, k, v))
    q, k = (z / np.sqrt(np.mean(z * z) + eps) for z in (q, k))
    q, k = q * (1 + state["q_norm.gamma"][head, 0]), k * (1 + state["k_norm.gamma"][head, 0])
    names = ("adaptive_step", "momentum", "decay_factor")
    rate, eta, forget = (token @ state[f"to_{n}.0.weight"][head] + state[f"to_{n}.0.bias"][head] for n in names)
    return q, k, v, RATE_MAX * sigmoid(rate), sigmoid(eta), sigmoid(forget)


def memory_layers(weights, x):
    """Each layer's output and each layer's input: x W_1, gelu(x W_1) W_2, ..."""
    outputs, layer_inputs = [], [x]
    for w in weights:
        outputs.append(layer_inputs[-1] @ w)
        layer_inputs.append(outputs[-1] * normal_cdf(outputs[-1]))
    return outputs, layer_inputs


def memory_gradient(weights, k, v):
    outputs, layer_inputs = memory_layers(weights, k)
    delta, gradient = 2 * (outputs[-1] - v), []
    for i in reversed(range(len(weights))):
        gradient.insert(0, np.outer(layer_inputs[i], delta))
        z = outputs[i - 1]
        slope = normal_cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        delta = weights[i] @ delta * slope if i else None
    return gradient


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def normal_cdf(z):
    return np.vectorize(lambda one: 0.5 * (1 + math.erf(one / math.sqrt(2))))(z)


def assert_near(found, wanted, tolerance, what):
    error = np.max(np.abs(found - wanted)) / max(np.max(np.abs(wanted)), 1e-3)
    assert error <= tolerance, f"{what}: {error:.1e} > {tolerance}"


@every_case
def test_equals_the_token_loop_in_float64(case):
    state, x = random_state(case, dtype=np.float64), inputs(case)
    wanted = by_hand(state, x, case, np.finfo(np.float64).eps)
    with jax.enable_x64(True):
        found = outputs(interop.from_titans_pytorch(state), x, case.chunk)
    assert_near(np.asarray(found), wanted, 1e-12, "outputs")


def test_chunk_is_part_of_the_mathematics():
    case = CASES[1]
    weights, x = interop.from_titans_pytorch(random_state(case)), inputs(case).astype(np.float32)
    eight, four = (outputs(weights, x, chunk) for chunk in (8, 4))
    np.testing.assert_allclose(eight[:, :4], four[:, :4], atol=1e-6)
    assert np.max(np.abs(eight - four)) > 0.01 * np.max(np.abs(eight))


@every_case
def test_state_dict_returns_unchanged(case):
    state = random_state(case)
    back = interop.to_titans_pytorch(interop.from_titans_pytorch(state))
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("q_norm.gamma"), "q_norm.gamma is absent"),
        (lambda state: state.pop("to_adaptive_step.0.weight"), "needs to_adaptive_step.0.weight: .* per head"),
        (lambda state: state.update({"retrieve_norm.weight": np.ones(DIM)}), "store_norm.weight is absent"),
        (lambda state: state.update({"transition_gate": np.ones(())}), r"transition_gate is \(\) .* must be absent"),
        (lambda state: state.update({"memory_model.norm.gamma": np.ones(4)}), "memory_model_parameters.1 is"),
        (lambda state: state.update({"to_keys.0.weight": np.ones((2 * DIM, DIM))}), "to_keys.0.weight"),
        (lambda state: state.pop("to_momentum.0.bias"), "to_momentum.0.bias is absent"),
        (lambda state: state.pop("memory_model_parameters.1"), "memory_model_parameters.0 is"),
        (lambda state: state.update({"memory_model_parameters.0": np.ones((4, 16))}), "memory_model_parameters.0"),
        (lambda state: state.update({"memory_model.weights.1.0": np.ones((4, 16))}), "memory_model.weights.1.0"),
    ],
)
def test_refuses_another_configuration(change, message):
    state = random_state(CASES[2])
    change(state)
    with pytest.raises(ValueError, match=message):
        interop.from_titans_pytorch(state)


def test_refuses_inputs_of_another_width():
    weights = interop.from_titans_pytorch(random_state(CASES[0]))
    with pytest.raises(ValueError, match=r"\[batch, tokens, 16\]"):
        interop.neural_memory(weights, jnp.zeros((2, 8, 12)), chunk=8, rate_max=1.0)


def torch_module(case, state):
    """titans-pytorch in the configuration that computes the paper's recurrence, with the weights of `state`."""
    torch = pytest.importorskip("torch", reason="needs the extra: pip install titans-jax[parity]")
    titans = pytest.importorskip("titans_pytorch", reason="needs the extra: pip install titans-jax[parity]")
    module = neural_memory(
        torch, titans, DIM, heads=case.heads, depth=case.depth, chunk=1, batch=case.chunk, max_rate=RATE_MAX
    )
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    module.load_state_dict(tensors, strict=True, assign=True)  # by copy it fails: all heads begin as one memory's views
    return module


def arrays(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def torch_values(module, x):
    """What `jax_values` returns, by torch."""
    import torch

    x = torch.tensor(x, dtype=next(module.parameters()).dtype, requires_grad=True)
    y = module(x)[0]
    module.zero_grad()
    y.square().sum().backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}
    return y.detach().numpy(), x.grad.numpy(), {name: grad.numpy() for name, grad in grads.items()}


def assert_same_values(found, wanted, values, gradients):
    assert_near(found[0], wanted[0], values, "outputs")
    assert_near(found[1], wanted[1], gradients, "gradient of x")
    assert found[2].keys() == wanted[2].keys()
    for name, gradient in wanted[2].items():
        assert_near(found[2][name], gradient, gradients, name)


@pytest.mark.slow
@every_case
def test_torch_outputs_and_gradients_in_float64(case):
    state, x = random_state(case, dtype=np.float64), inputs(case)
    there = torch_values(torch_module(case, state), x)
    assert_near(there[0], by_hand(state, x, case, np.finfo(np.float64).eps), 1e-12, "torch against the token loop")
    with jax.enable_x64(True):
        assert_same_values(jax_values(state, x, case.chunk), there, 1e-12, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[2:4], ids=["depth2", "depth3"])
def test_float32_is_as_precise_as_torchs(case):
    ours, theirs, exact = [], [], []
    for seed in SEEDS:
        state, x = random_state(case, seed), inputs(case, seed + 1).astype(np.float32)
        ours.append(jax_values(state, x, case.chunk))
        theirs.append(torch_values(torch_module(case, state), x))
        wide = {name: array.astype(np.float64) for name, array in state.items()}
        exact.append(torch_values(torch_module(case, wide), x.astype(np.float64)))
    for i, what in enumerate(("outputs", "gradient of x", "gradient of ")):
        as_precise(*([values[i] for values in each] for each in (ours, theirs, exact)), what)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(8, 11), (5, 1, 1, 12), (1,) * 19])
def test_torch_in_pieces_is_one_call_here(split):
    case = CASES[2]
    state, x = random_state(case, dtype=np.float64), inputs(case)
    module, carried, parts = torch_module(case, state), None, []
    import torch

    for part in torch.tensor(x).split(split, dim=1):
        y, carried = module(part, state=carried)
        parts.append(y.detach().numpy())
    with jax.enable_x64(True):
        here = outputs(interop.from_titans_pytorch(state), x, case.chunk)
    assert_near(np.concatenate(parts, axis=1), np.asarray(here), 1e-12, "outputs")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[1:4:2], ids=["one head", "four heads"])
def test_torch_loads_weights_made_here(case):
    weights = interop.from_titans_pytorch(random_state(case))
    keys = iter(jax.random.split(jax.random.key(7), len(jax.tree.leaves(weights))))
    weights = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(next(keys), leaf.shape), weights)
    state, x = interop.to_titans_pytorch(weights), inputs(case)
    fresh = torch_module(case, {name: array.astype(np.float64) for name, array in state.items()})
    with jax.enable_x64(True):
        here = outputs(interop.from_titans_pytorch(arrays(fresh)), x, case.chunk)
    assert_near(torch_values(fresh, x)[0], np.asarray(here), 1e-12, "outputs")
    back = interop.from_titans_pytorch(arrays(torch_module(case, state)))
    jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(np.asarray, weights))


class Variant(NamedTuple):
    """What a NeuralMemory is built with, beside heads, chunk and depth 2."""

    heads: int
    activation: bool
    norms: tuple[str, ...]
    momentum: bool = True


VARIANTS = {
    "defaults": Variant(2, False, ("pre", "residual")),  # NeuralMemory(dim, heads=, dim_head=, batch_size=), no more
    "everything": Variant(2, True, ("pre", "qk", "post", "residual")),
    "bare": Variant(1, False, (), momentum=False),
}
# What titans-pytorch 0.5.5 gave for the last token of row 0, in float64: the torch test below compares them too.
GIVEN = {
    "defaults": (1.83455057174, 0.954884551905, -0.322114473175, -0.485114740559)
    + (-0.840625258456, -0.461924498584, -1.48302595463, -0.127992800606),
    "everything": (2.07150956787, 0.875146635939, 0.724443758251, -0.34658785895)
    + (-1.55066419306, -0.342120198621, -1.86481612477, -0.0746612819599),
    "bare": (-0.0110363914749, -0.0720596772508, 0.0535537796581, -0.0907352924862)
    + (-0.0578027612231, -0.122855762259, -0.0431924281311, 0.0840572986121),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def variant_state(name):
    """A state dict of 8 features, written out name by name."""
    heads, activation, norms, momentum = VARIANTS[name]
    draw, dim, head = np.random.default_rng(3).standard_normal, 8, 8 // heads
    suffix = ".0" if activation else ""
    state = {f"to_{part}{suffix}.weight": draw((dim, dim)) / dim**0.5 for part in ("queries", "keys", "values")}
    gates = {"adaptive_step": -2.0, "decay_factor": -3.0} | ({"momentum": 0.0} if momentum else {})
    for part, start in gates.items():
        state |= {f"to_{part}.0.weight": draw((heads, dim)) / dim**0.5, f"to_{part}.0.bias": draw(heads) / 4 + start}
    if heads > 1:
        state |= {"retrieve_gate.0.weight": draw((heads, dim)), "combine_heads.weight": draw((dim, dim))}
    if "pre" in norms:
        state |= {f"{part}_norm.weight": 1 + draw(dim) / 4 for part in ("retrieve", "store")}
    gammas = ["q_norm", "k_norm"] * ("qk" in norms) + ["multihead_rmsnorm"] * ("post" in norms)
    state |= {f"{part}.gamma": draw((heads, 1, head)) / 4 for part in gammas}
    residual = "residual" in norms
    inside = "memory_model.model.weights" if residual else "memory_model.weights"
    if residual:
        state |= {"memory_model.norm.gamma": draw(head), "memory_model_parameters.0": draw((heads, head)) / 4}
    for i, shape in enumerate(((head, 4 * head), (4 * head, head))):
        state[f"{inside}.{i}"] = draw(shape)
        state[f"memory_model_parameters.{i + residual}"] = draw((heads, *shape)) / shape[0] ** 0.5
    return state


def variant_weights(name, dtype):
    return interop.from_titans_pytorch({key: array.astype(dtype) for key, array in variant_state(name).items()})


@functools.partial(jax.jit, static_argnames="name")
def variant_outputs(weights, x, name):
    rate = RATE_MAX / (8 // VARIANTS[name].heads)  # their own loss is a mean
    return interop.neural_memory(weights, x, chunk=4, rate_max=rate, activation=VARIANTS[name].activation)


def variant_values(name, dtype):
    """y, and the gradients of sum(y^2) by x and by every weight."""

    def loss(weights, x):
        y = variant_outputs(weights, x, name)
        return jnp.sum(y**2), y

    x = variant_inputs().astype(dtype)
    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)
    (by_weights, by_x), y = gradient(variant_weights(name, dtype), x)
    by_weights = interop.to_titans_pytorch(by_weights, activation=VARIANTS[name].activation)
    return np.asarray(y), np.asarray(by_x), by_weights


def variant_inputs():
    return np.random.default_rng(4).standard_normal((2, 10, 8))


@pytest.mark.parametrize("name", ["defaults", "everything", pytest.param("bare", marks=pytest.mark.slow)])
def test_norms_and_gates_give_what_torch_gave(name):
    with jax.enable_x64(True):
        y = variant_outputs(variant_weights(name, np.float64), variant_inputs(), name)
    np.testing.assert_allclose(y[0, -1], GIVEN[name], rtol=1e-9)


@every_variant
def test_a_variants_state_dict_returns_unchanged(name):
    state = variant_state(name)
    weights = interop.from_titans_pytorch(state)
    back = interop.to_titans_pytorch(weights, activation=VARIANTS[name].activation)
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def torch_variant(name, dtype):
    torch = pytest.importorskip("torch", reason="needs the extra: pip install titans-jax[parity]")
    titans = pytest.importorskip("titans_pytorch", reason="needs the extra: pip install titans-jax[parity]")
    heads, activation, norms, momentum = VARIANTS[name]
    options = (
        {}
        if name == "defaults"
        else dict(
            activation=torch.nn.SiLU() if activation else None,
            momentum=momentum,
            qk_rmsnorm="qk" in norms,
            pre_rmsnorm="pre" in norms,
            post_rmsnorm="post" in norms,
            mem_model_norm_add_residual="residual" in norms,
        )
    )
    sizes = dict(heads=heads, dim_head=8 // heads, batch_size=4, default_step_transform_max_lr=RATE_MAX)
    module = titans.NeuralMemory(8, **sizes, **options)
    tensors = {key: torch.from_numpy(array.astype(dtype)) for key, array in variant_state(name).items()}
    module.load_state_dict(tensors, strict=True, assign=True)
    return module


@pytest.mark.slow
@every_variant
def test_torch_variants_in_float64(name):
    there = torch_values(torch_variant(name, np.float64), variant_inputs())
    np.testing.assert_allclose(there[0][0, -1], GIVEN[name], rtol=1e-9)
    with jax.enable_x64(True):
        assert_same_values(variant_values(name, np.float64), there, 1e-11, 1e-9)
