"""MIRAS' rows one by one: every bias by its printed gradient, every retention by its printed recurrence."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close
from tests.memory.situations import CHUNK, DIM
from tests.oracles import miras as by_hand
from titans_jax.memory import Architecture, Bias, Gates, Retention, Rule, architecture, bias, learner, miras, presets
from titans_jax.memory import retention as kept

TOKENS = 10


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


BIASES = {
    "l1": (bias.l1(), by_hand.l1),
    "lp3": (bias.lp(3.0), by_hand.lp(3)),
    "lp1.5": (bias.lp(1.5), by_hand.lp(1.5)),
    "huber_coordinate": (bias.huber(form="coordinate"), by_hand.huber_of_coordinates),
    "huber_norm": (bias.huber(), by_hand.huber_of_norm),
    "huber_mixture": (bias.huber(form="mixture"), by_hand.mixture),
    "value_shift": (bias.value_shift(0.7), by_hand.value_shift(0.7)),
}


@pytest.mark.parametrize("name", BIASES)
def test_bias_has_the_printed_gradient(name: str) -> None:
    """At errors small and large, and none at all; of it the outer gradient is finite, there too."""
    row, slope = BIASES[name]
    rng = np.random.default_rng(0)
    v, r = rng.normal(size=(2, 8, DIM)) * np.array([0, 1e-4, 0.01, 0.1, 0.3, 1, 3, 30])[:, None]
    threshold = rng.uniform(0.5, 2, 8)
    gates = (threshold,) if row.threshold else ()
    gradient = jax.vmap(jax.grad(row.loss))
    got = jax.jit(gradient)(v + r, v, *gates)
    close(got, np.array([slope(v[i] + r[i] - v[i], threshold[i]) for i in range(8)]), 1e-9)
    if row.threshold:
        close(jax.jit(gradient)(v + r, v), np.array([slope(v[i] + r[i] - v[i], 1.0) for i in range(8)]), 1e-9)
    for argument in range(2 + len(gates)):
        outer = jax.grad(lambda *xs: (gradient(*xs) ** 2).sum(), argument)
        for dtype in ("float64", "float32"):
            assert np.isfinite(jax.jit(outer)(*(x.astype(dtype) for x in (v + r, v, *gates)))).all()


def test_losses_are_what_they_are_called() -> None:
    r = np.linspace(-3, 3, 7)
    losses = {
        "l1": np.abs(r).sum(),
        "lp3": (np.abs(r) ** 3).sum(),
        "huber_coordinate": np.where(np.abs(r) < 1, r**2 / 2, np.abs(r) - 0.5).sum(),
        "huber_norm": np.linalg.norm(r) - 0.5,
        "value_shift": (np.linalg.norm(r) + 0.7) ** 2 / 2,
    }
    for name, want in losses.items():
        np.testing.assert_allclose(BIASES[name][0].loss(r, 0 * r), want, rtol=0.05, err_msg=name)


def test_the_norms_huber_is_continuous_where_the_mixture_jumps() -> None:
    edge = np.array([1.0, 0.0, 0.0, 0.0])

    def jump(form: str) -> Any:
        gradient = jax.grad(bias.huber(form=form).loss)
        return np.abs(gradient(edge * 1.0001, 0 * edge) - gradient(edge * 0.9999, 0 * edge)).max()

    assert jump("norm") < 1e-3 and jump("coordinate") < 1e-3
    assert jump("mixture") > 0.9  # from 2 to 1


RETENTIONS = {
    "elastic_net": (lambda every: kept.elastic_net(0.1, every), by_hand.soft_threshold(0.1)),
    "lq4": (lambda every: kept.lq(4, every=every), by_hand.mirror(4)),
    "lq2.5": (lambda every: kept.lq(2.5, every=every), by_hand.mirror(2.5)),
    "lq4_literal": (lambda every: kept.lq(4, "literal", every), by_hand.literal(4)),
    "kl_soft": (lambda every: kept.kl(hard=False, every=every), np.exp),
    "kl_hard": (lambda every: kept.kl(every=every), by_hand.softmax(None)),
    "kl_hard_scale": (lambda every: kept.kl(1.5, every=every), by_hand.softmax(1.5)),
    "logistic": (lambda every: kept.logistic(every), by_hand.sigmoid),
}


def matrix(row: Bias, retention: Retention) -> Rule:
    network = Architecture(architecture.linear(DIM).init, lambda linear, x: linear("w1", x), {}, "w1")
    return Rule(network, row, retention, learner.gradient_descent())


def stream(seed: int = 0) -> tuple[Any, Any, Any, Gates]:
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, TOKENS, DIM))
    gates = Gates(rng.uniform(0, 0.3, TOKENS), np.ones(TOKENS), rng.uniform(0.8, 1, TOKENS))
    return q, k / np.linalg.norm(k, axis=-1, keepdims=True), v, gates


def run(rule: Rule, state: Any, arguments: Any, **choices: Any) -> Any:
    memory = miras(rule, **choices)
    return jax.device_get(jax.jit(memory.update, compiler_options=QUICK)(state, *arguments))


@pytest.mark.parametrize("name", RETENTIONS)
@pytest.mark.parametrize("every, implementation", [("chunk", "chunked"), ("token", "recurrent")])
def test_retention_is_its_recurrence(name: str, every: str, implementation: str) -> None:
    """From weights of its range, by lift; the last token ends no chunk, and `read` reads what y was read from."""
    make, link = RETENTIONS[name]
    rule = matrix(bias.l2(), make(every))
    memory = miras(rule, chunk=CHUNK, clip=None)
    initial = {"w1": link(np.random.default_rng(1).normal(size=(DIM, DIM)))}
    state = jax.device_get(memory.init(initial))
    q, k, v, gates = stream()
    y, after, _ = run(rule, state, (q, k, v, gates), chunk=CHUNK, clip=None, implementation=implementation)
    want, dual = by_hand.matrix(by_hand.l2, link, every)(state.dual, q, k, v, *gates[:3], CHUNK)
    close((y, after.dual), (want, dual), 1e-9)
    close(memory.read(after, q[-1:])[0], y[-1], 1e-12)


@pytest.mark.parametrize("name", ["huber_mixture", "lp1.5"])
@pytest.mark.parametrize("gated", [True, False], ids=["gate", "fixed"])
def test_bias_drives_its_recurrence(name: str, gated: bool) -> None:
    """With the threshold as a gate, and without one; a bias that has none passes over the gate."""
    row, slope = BIASES[name]
    q, k, v, gates = stream()
    threshold = np.random.default_rng(2).uniform(1, 3, TOKENS)
    rule, state = matrix(row, kept.decay()), None
    state = jax.device_get(miras(rule, chunk=CHUNK).init({"w1": np.random.default_rng(1).normal(size=(DIM, DIM))}))
    given = gates._replace(threshold=threshold) if gated else gates
    want, dual = by_hand.matrix(slope, by_hand.same)(
        state.dual, q, k, v, *gates[:3], CHUNK, threshold=threshold if gated else None
    )
    for implementation in ("chunked", "recurrent"):
        y, after, _ = run(rule, state, (q, k, v, given), chunk=CHUNK, clip=None, implementation=implementation)
        close((y, after.dual), (want, dual), 1e-9, implementation)


def test_memora_in_logits_is_its_equation_in_weights() -> None:
    """Eq 27 token by token: the step of chunk 1, the link at every token."""
    rule = presets.memora(DIM, expansion=2, every="token")
    q, k, v, gates = stream()
    weights = jax.device_get(rule.architecture.init(jax.random.key(0)))
    memory = miras(rule, chunk=1, clip=None)
    y, state, _ = run(rule, memory.init(weights), (q, k, v, gates), chunk=1, clip=None)
    want, last = by_hand.memora_in_weights(weights, q, k, v, gates.rate, gates.keep)
    close((y, rule.retention.link(state.dual)), (want, last), 1e-9)


def test_monetas_printed_map_is_not_the_mirror_map() -> None:
    """It has degree -1 at q = 4: twice the dual is half the weights, and A_0 = W_0 / ||W_0||_4^2."""
    w = {"w": np.random.default_rng(0).normal(size=(DIM, DIM))}
    twice = jax.tree.map(lambda x: 2 * x, w)
    mirror, literal = kept.lq(4), kept.lq(4, map="literal")
    close(mirror.link(twice)["w"], 2 * mirror.link(w)["w"], 1e-12)
    close(literal.link(twice)["w"], literal.link(w)["w"] / 2, 1e-12)
    close(literal.lift(w)["w"], w["w"] / np.sqrt((w["w"] ** 4).sum()), 1e-12)
    assert presets.moneta(DIM, map="literal").retention.link(twice)["w"] == pytest.approx(literal.link(twice)["w"])


@pytest.mark.parametrize("name", RETENTIONS)
def test_links_have_gradients_where_the_dual_is_zero(name: str) -> None:
    make, _ = RETENTIONS[name]
    zeros = {"w": np.zeros((DIM, DIM), "float32")}
    slopes = jax.grad(lambda a: jnp.vdot(make("chunk").link(a)["w"], np.arange(16.0).reshape(4, 4)))(zeros)
    assert np.isfinite(slopes["w"]).all()
    if name.startswith(("lq", "elastic")) and "literal" not in name:
        slopes = jax.grad(lambda w: make("chunk").lift(w)["w"].sum())(zeros)
        assert np.isfinite(slopes["w"]).all()


@pytest.mark.parametrize("grad_at", ["previous", "decayed"])
def test_exact_serves_a_link_at_chunk_ends(grad_at: str) -> None:
    rule = matrix(bias.l2(0.5), kept.lq(4))._replace(learner=learner.momentum(1, grad_at))
    weights = {"w1": np.random.default_rng(1).normal(size=(DIM, DIM))}
    state = jax.device_get(miras(rule, chunk=CHUNK).init(weights))
    runs = [run(rule, state, stream(), chunk=CHUNK, implementation=i) for i in ("exact", "recurrent")]
    close(*(x[:2] for x in runs), 1e-9)


def test_an_identity_carries_nothing() -> None:
    rules = presets.titans(4), presets.yaad(4), presets.memora(4), presets.memora(4, every="token")
    weights = [miras(r, chunk=4).init(r.architecture.init(jax.random.key(0))).weights for r in rules]
    assert [w is None for w in weights] == [True, True, False, True]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: bias.lp(0.5), "p: 0.5"),
        (lambda: bias.huber(0.0), "delta: 0.0; it must be above 0"),
        (lambda: bias.huber(form="l2"), "form: 'l2'; known are norm, coordinate, mixture"),
        (lambda: bias.value_shift(-1), "radius: -1"),
        (lambda: kept.elastic_net(-0.1), "threshold: -0.1"),
        (lambda: kept.lq(1.5), "q: 1.5; it must be at least 2"),
        (lambda: kept.lq(3, map="literal"), "q: 3; the literal map"),
        (lambda: kept.lq(4, map="dual"), "map: 'dual'; known are mirror, literal"),
        (lambda: kept.logistic(every="step"), "every: 'step'; known are chunk, token"),
        (
            lambda: miras(matrix(bias.l2(), kept.lq(4)._replace(to_origin=True)), chunk=4),
            "to_origin needs the identity",
        ),
    ],
)
def test_wrong_choices(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_link_at_every_token_is_served_by_recurrent_alone() -> None:
    rule = presets.memora(4, every="token")
    with pytest.raises(NotImplementedError, match="chunked: a link at every token"):
        miras(rule, chunk=4, implementation="chunked")
    assert miras(rule, chunk=4)
