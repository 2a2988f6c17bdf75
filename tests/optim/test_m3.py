"""M3 against its equations, and its special cases: Adam, Muon, the printed algorithm."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from titans_jax.optim import OptimConfig, build, m3, orthogonalise, scale_by_m3

CHUNK = 3
PRINTED = dict(mode="literal", second_moment="gradient", rms=None)  # Algorithm 1 as the paper prints it


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def trees(steps, seed=0):
    """Gradients of a wide, a tall and a stacked matrix; `also` has the shape of `tall` transposed."""
    shapes = {"wide": (3, 5), "tall": (6, 4), "also": (4, 6), "stack": (2, 4, 3)}
    return [{k: draw(*s, seed=(seed, t, i)) for i, (k, s) in enumerate(shapes.items())} for t in range(steps)]


def run(transformation, gradients):
    """The updates, and the state after each."""
    state, seen = transformation.init(gradients[0]), []
    update = jax.jit(transformation.update)
    for gradient in gradients:
        updates, state = update(gradient, state)
        seen.append((updates, state))
    return [list(column) for column in zip(*seen, strict=True)]


def newton_schulz(m, steps=5, eps=1e-8):
    """Newton-Schulz of one matrix in float64, on its singular values: s <- a s + b s^3 + c s^5."""
    u, s, vt = np.linalg.svd(np.asarray(m, np.float64), full_matrices=False)
    if not steps:
        return np.asarray(m, np.float64)
    s = s / (np.sqrt(np.sum(s**2)) + eps)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def by_hand(gradients, *, b1, b2, b3, alpha, chunk, ns_steps=5, eps, second_moment, mode, rms):
    """The updates of one matrix by the equations, as the paper's loop over chunks."""
    ema = mode == "ema"
    m1 = m2 = v = np.zeros(gradients[0].shape)
    o2, updates, past = m2, [], None
    for k in range(0, len(gradients), chunk):
        if past is not None:
            total = sum(past)
            m2 = b3 * m2 + (1 - b3) * total / chunk if ema else m2 + b3 * total
            n = k // chunk
            o2 = newton_schulz(m2 / (1 - b3**n) if ema else m2, ns_steps, eps)
        past = [np.asarray(g, np.float64) for g in gradients[k : k + chunk]]
        for t, g in enumerate(past, start=k + 1):
            m1 = b1 * m1 + (1 - b1) * g if ema else m1 + b1 * g
            u = newton_schulz(m1 / (1 - b1**t) if ema else m1, ns_steps, eps) + alpha * o2
            if second_moment:
                square = np.square(u if second_moment == "update" else g)
                v = b2 * v + (1 - b2) * square if ema else v + b2 * square
                u = u / (np.sqrt(v / (1 - b2**t) if ema else v) + eps)
            if rms is not None:
                u = u * rms / np.sqrt(np.mean(u**2))
            updates.append(u)
    return updates


def cosine(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_newton_schulz_maps_singular_values_by_the_quintic():
    [tree] = trees(1)
    out = jax.jit(orthogonalise)(tree)
    for name in ("wide", "tall", "also"):
        np.testing.assert_allclose(out[name], newton_schulz(tree[name]), atol=2e-5)
    for layer in range(2):
        np.testing.assert_allclose(out["stack"][layer], newton_schulz(tree["stack"][layer]), atol=2e-5)
    np.testing.assert_allclose(orthogonalise(tree["wide"], steps=2), newton_schulz(tree["wide"], 2), atol=2e-5)
    np.testing.assert_array_equal(orthogonalise(tree["wide"], steps=0), tree["wide"])


def test_leaves_of_equal_shape_are_one_batch():
    def matmuls(*shapes):
        jaxpr = jax.make_jaxpr(orthogonalise)([jnp.ones(shape) for shape in shapes])
        return str(jaxpr).count("dot_general")

    assert matmuls((4, 6), (4, 6), (6, 4)) == matmuls((4, 6)) == matmuls((4, 6), (2, 4, 6)) / 2 > 0


@pytest.mark.parametrize(
    "options",
    [
        dict(mode="ema", second_moment="update", rms=0.2),
        dict(mode="ema", second_moment="gradient", rms=None),
        dict(mode="ema", second_moment=None, rms=0.1),
        dict(mode="ema", second_moment="gradient", rms=None, ns_steps=0),
        PRINTED,
        PRINTED | dict(ns_steps=0),
    ],
    ids=str,
)
def test_equals_the_equations_over_three_chunks(options):
    options = dict(b1=0.8, b2=0.95, b3=0.6, alpha=0.7, chunk=CHUNK, eps=1e-6) | options
    gradients = trees(3 * CHUNK + 1)
    updates, _ = run(scale_by_m3(**options), gradients)
    for name in ("wide", "tall", "also"):
        wanted = by_hand([g[name] for g in gradients], **options)
        np.testing.assert_allclose([u[name] for u in updates], wanted, rtol=2e-3, atol=2e-4)


def test_the_defaults_are_ema_update_and_rms():
    options = {name: p.default for name, p in inspect.signature(scale_by_m3).parameters.items()}
    assert (options["mode"], options["second_moment"], options["rms"], options["ns_steps"]) == ("ema", "update", 0.2, 5)
    gradients = trees(2)
    updates, _ = run(scale_by_m3(), gradients)
    np.testing.assert_allclose(
        [u["wide"] for u in updates], by_hand([g["wide"] for g in gradients], **options), rtol=2e-3, atol=2e-4
    )
    for u in jax.tree.leaves(updates):
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(u), axis=(-2, -1))), 0.2, rtol=1e-5)


@pytest.mark.parametrize("second_moment", [None, "gradient"])
def test_momentum_coefficients_change_nothing_in_literal_mode(second_moment):
    options = PRINTED | dict(second_moment=second_moment, alpha=0.5, chunk=2)
    gradients = [{"wide": g["wide"]} for g in trees(5)]
    [one, _], [other, _] = (run(scale_by_m3(b1, 0.9, b3, **options), gradients) for b1, b3 in [(1.0, 1.0), (0.1, 7.0)])
    # Newton-Schulz multiplies roundings by up to 3.4^5: 3e-5, and 6e-5 was seen on ten seeds
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), one, other)
    [decaying, _] = run(scale_by_m3(0.1, 0.9, 0.5, **options | dict(mode="ema")), gradients)
    assert np.max(np.abs(decaying[-1]["wide"] - one[-1]["wide"])) > 0.05


def test_the_printed_update_grows_as_the_gradient_shrinks():
    transformation = scale_by_m3(b2=1.0, **PRINTED)
    w = draw(3, 5)
    w += np.copysign(0.3, w)  # the square root of the second moment is an entry of w: eps is 1e-8, or 3e-5 of the least
    [[large], _], [[small], _] = (run(transformation, [{"w": scale * w}]) for scale in (1.0, 1e-3))
    np.testing.assert_allclose(np.asarray(small["w"]) / 1000, large["w"], atol=3e-4)


def test_without_newton_schulz_and_the_slow_momentum_it_is_adam():
    gradients = trees(5)
    options = dict(alpha=0.0, ns_steps=0, second_moment="gradient", rms=None, eps=1e-3)
    mine, _ = run(scale_by_m3(0.8, 0.9, **options), gradients)
    adam, _ = run(optax.scale_by_adam(0.8, 0.9, eps=1e-3), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, adam)


def test_without_second_moment_and_slow_momentum_it_has_muons_direction():
    gradients = [{k: g[k] for k in ("wide", "tall", "also")} for g in trees(5)]
    mine, _ = run(scale_by_m3(0.8, alpha=0.0, second_moment=None), gradients)
    axes = jax.tree.map(lambda _: contrib.MuonDimensionNumbers(0, 1), gradients[0])
    muon, _ = run(contrib.scale_by_muon(beta=0.8, nesterov=False, weight_dimension_numbers=axes), gradients)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(muon), strict=True):
        assert cosine(a, b) > 1 - 1e-6
    slow, _ = run(scale_by_m3(0.8, alpha=0.5, chunk=2, second_moment=None), gradients)
    assert cosine(slow[-1]["wide"], muon[-1]["wide"]) < 0.999


@pytest.mark.parametrize("mode", ["ema", "literal"])
def test_the_slow_direction_is_constant_inside_a_chunk_and_one_chunk_late(mode):
    wide = lambda *how, **more: [{"wide": g["wide"]} for g in trees(*how, **more)]
    gradients = wide(2 * CHUNK + 1)
    changed = [*gradients[: CHUNK - 1], *wide(1, seed=9), *gradients[CHUNK:]]  # the first chunk's last gradient
    options = dict(chunk=CHUNK, mode=mode, second_moment=None, rms=None, alpha=1.0)
    transformation = scale_by_m3(**options)
    updates, states = run(transformation, gradients)
    _, others = run(transformation, changed)
    # the same program without a slow direction: another one rounds otherwise, and Newton-Schulz multiplies that
    update, before = jax.jit(transformation.update), [transformation.init(gradients[0]), *states[:-1]]
    without = [state._replace(o2=jax.tree.map(np.zeros_like, state.o2)) for state in before]
    fast = [update(g, state)[0] for g, state in zip(gradients, without, strict=True)]
    used = [np.asarray(u["wide"] - f["wide"]) for u, f in zip(updates, fast, strict=True)]
    slow = [np.zeros((3, 5)), *(np.asarray(s.o2["wide"]) for s in states)]
    np.testing.assert_allclose(used, slow[:-1], atol=1e-5)  # a step adds the last step's slow direction
    for t in range(2 * CHUNK):
        same = np.array_equal(slow[t + 1], slow[t])
        assert same == ((t + 1) % CHUNK != 0)
    mean = sum(g["wide"] for g in gradients[:CHUNK])
    np.testing.assert_allclose(slow[CHUNK], newton_schulz(mean), atol=5e-5)
    assert np.max(np.abs(used[:CHUNK])) < 1e-6
    assert np.max(np.abs(others[CHUNK - 1].o2["wide"] - slow[CHUNK])) > 0.05


def test_a_stack_of_matrices_equals_separate_matrices():
    gradients = [{"w": draw(2, 3, 4, 6, seed=t) * np.array([1e-2, 1.0]).reshape(2, 1, 1, 1)} for t in range(4)]
    gradients = jax.tree.map(lambda g: g.astype(np.float32), gradients)
    stacked, _ = run(scale_by_m3(chunk=2), gradients)
    for layer, head in [(0, 0), (0, 2), (1, 1)]:
        alone, _ = run(scale_by_m3(chunk=2), [{"w": g["w"][layer, head]} for g in gradients])
        for a, b in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(a["w"][layer, head], b["w"], atol=1e-4)


@pytest.mark.parametrize("options", [{}, PRINTED, dict(second_moment="gradient"), dict(second_moment=None)], ids=str)
def test_zero_gradients_give_zero_updates_and_a_finite_state(options):
    one = {name: trees(1)[0][name] for name in ("wide", "stack")}
    zero = jax.tree.map(np.zeros_like, one)
    transformation = scale_by_m3(chunk=2, **options)
    updates, states = run(transformation, [zero] * 5)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(states))
    updates, _ = run(transformation, [one] + [zero] * 4)
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))


def test_the_state_is_float32_and_the_update_has_the_gradients_dtype():
    gradient = {"w": jnp.asarray(draw(3, 5), jnp.bfloat16)}
    [updates], [state] = run(scale_by_m3(), [gradient])
    assert updates["w"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mode="sum"), "m3.mode: 'sum' is unknown; known are ema, literal"),
        (dict(second_moment="both"), "m3.second_moment: 'both' is unknown; known are update, gradient, None"),
        (dict(b1=-0.1), "m3.b1 is -0.1, it must be at least 0 and below 1"),
        (dict(b2=1.0), "m3.b2 is 1.0, it must be at least 0 and below 1"),
        (dict(b3=-1.0, mode="literal"), "m3.b3 is -1.0, it must be at least 0"),
        (dict(alpha=-0.5), "m3.alpha is -0.5, it must be 0 or more"),
        (dict(chunk=0), "m3.chunk is 0, it must be 1 or more"),
        (dict(ns_steps=-1), "m3.ns_steps is -1, it must be 0 or more"),
        (dict(eps=0.0), "m3.eps is 0.0, it must be above 0"),
        (dict(rms=-0.2), "m3.rms is -0.2, it must be above 0, or None"),
    ],
)
def test_invalid_options_are_refused(change, message):
    for make in (scale_by_m3, lambda **options: m3(0.1, **options)):
        with pytest.raises(ValueError) as error:
            make(**change)
        assert str(error.value) == message


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"m3: 'a/bias' has shape \(3,\), it must be \[..., in, out\]"):
        scale_by_m3().init({"a": {"bias": jnp.zeros(3)}})


def test_build_uses_m3_for_kernels_and_adam_for_the_rest():
    names = {"layers": ("kernel", (2, 6, 4)), "norm": ("scale", (4,)), "embed": ("embedding", (5, 4))}
    names |= {"head": ("kernel", (4, 5)), "proj": ("kernel", (4, 6))}
    params = {k: {name: jnp.zeros(shape)} for k, (name, shape) in names.items()}
    gradient = {k: {name: draw(*shape, seed=i)} for i, (k, (name, shape)) in enumerate(names.items())}
    config = OptimConfig(name="m3", peak_rate=0.1, schedule="constant", warmup=0, clip=None)
    transformation = build(config, steps=10)
    updates, _ = jax.jit(transformation.update)(gradient, transformation.init(params), params)
    adam, _ = run(optax.scale_by_adam(), [gradient])
    mine, _ = run(scale_by_m3(b2=config.b2), [{k: gradient[k] for k in ("layers", "proj")}])
    for name in names:
        wanted = mine[0] if name in ("layers", "proj") else adam[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -0.1 * b, atol=1e-5), updates[name], wanted[name])
        assert np.max(np.abs(jax.tree.leaves(updates[name])[0])) > 0.01


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (dict(b1=0.7, b2=0.8, b3=0.6, alpha=0.9, chunk=2), dict(b1=0.7, b2=0.8, b3=0.6, alpha=0.9, chunk=2)),
        (dict(name="m3_literal", chunk=2, alpha=0.9, eps=1e-6), dict(b2=0.95, alpha=0.9, chunk=2, eps=1e-6) | PRINTED),
    ],
    ids=["every option", "literal"],
)
def test_the_options_of_m3_are_config_fields(change, options):
    config = OptimConfig(**dict(name="m3", peak_rate=0.1, schedule="constant", warmup=0, clip=None) | change)
    gradients = [{"kernel": draw(3, 5, seed=t)} for t in range(5)]
    transformation = build(config, steps=10)
    state, params = transformation.init(gradients[0]), jax.tree.map(jnp.zeros_like, gradients[0])
    wanted, _ = run(scale_by_m3(**options), gradients)
    update = jax.jit(transformation.update)
    for gradient, want in zip(gradients, wanted, strict=True):
        updates, state = update(gradient, state, params)
        np.testing.assert_allclose(updates["kernel"], -0.1 * want["kernel"], rtol=1e-3, atol=1e-5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from titans_jax.optim import scale_by_m3
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
places = {"x": P(None, "a", "b"), "y": P(None, "b", "a"), "z": P("a", None)}
shapes = {"x": (2, 4, 6), "y": (2, 6, 4), "z": (4, 6)}
rng, t = np.random.default_rng(0), scale_by_m3(chunk=1)
whole = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
split = {k: jax.device_put(w, NamedSharding(mesh, places[k])) for k, w in whole.items()}
def twice(g):
    _, state = t.update(g, t.init(g))
    return t.update(g, state)[0]
one, four = jax.jit(twice)(whole), jax.jit(twice)(split)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, four)
"""


def test_a_sharded_update_equals_the_unsharded_one(run_python):
    run_python("-c", SHARDED, devices=4)
