"""Identities between learners: what one is where another's choice has no effect, and what it comes to in the end."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close
from tests.memory.situations import CHUNK, DIM, Case, Member, absolute, row, situations, with_writes
from tests.oracles.learners import lact, newton_schulz
from titans_jax.memory import Gates, Rule, architecture, bias, features, learner, miras, presets, retention
from titans_jax.memory.chunk_end import orthogonalise


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def run(rule: Rule, case: Case, chunk: int = CHUNK, clip: float | None = 1.0, **how: Any) -> Any:
    update = miras(rule, chunk=chunk, clip=clip, **how).update
    return jax.device_get(jax.jit(update, compiler_options=QUICK)(*case))


def case_of(rule: Rule, r: int = 5, **how: Any) -> Case:
    return row(situations(Member("identity", rule), **how), r)


def test_omega_with_a_window_of_one_is_titans() -> None:
    """By OmegaNet's own rule, with Titans' momentum and monomials of degree 1."""
    titans = presets.titans(DIM, expansion=2)
    omega = presets.omeganet(DIM, expansion=2, window=1, degree=1)._replace(learner=learner.momentum())
    case = case_of(titans)
    close(run(omega, case)[:2], run(titans, case)[:2], 1e-12)


def test_omega_over_the_whole_stream_comes_to_least_squares() -> None:
    """c = t, a matrix, gamma 1 (ATLAS): descent over all that was read ends where ridge-free regression does."""
    rng = np.random.default_rng(0)
    tokens, steps = 7, 400  # every later token is one more step, and has no weight in its window
    q, k, v = rng.normal(size=(3, tokens + steps, DIM))
    step = 0.9 / np.linalg.norm(k[:tokens], 2) ** 2
    weight, rate = np.repeat([1.0, 0.0], [tokens, steps]), np.repeat([0.0, step], [tokens, steps])
    rule = presets.titans_linear(DIM)._replace(learner=learner.gradient_descent(window=tokens + steps))
    memory = miras(rule, chunk=1, clip=None)
    gates = Gates(rate, np.zeros_like(rate), np.ones_like(rate), weight=weight)
    state = memory.init({"w": np.zeros((DIM, DIM))})
    _, state, _ = jax.jit(memory.update, compiler_options=QUICK)(state, q, k, v, gates)
    close(state.dual["w"], np.linalg.lstsq(k[:tokens], v[:tokens], rcond=None)[0], 1e-6)


def test_momentum_0_keep_1_linear_is_deltanet() -> None:
    """Titans with fresh gradients of 1/2 ||M(k) - v||^2."""
    case = case_of(presets.deltanet(DIM))
    gates = case.gates._replace(momentum=np.zeros(14), keep=np.ones(14))
    titans = presets.titans_linear(DIM, grad_at="previous")._replace(bias=bias.l2(0.5))
    with_trace = case.state._replace(traces=(jax.tree.map(np.zeros_like, case.state.dual),))
    got = run(titans, case._replace(state=with_trace, gates=gates))
    want = run(presets.deltanet(DIM), case._replace(gates=gates))
    close((got[0], got[1].dual), (want[0], want[1].dual), 1e-12)


def test_deltaproduct_of_one_write_twice_is_two_tokens() -> None:
    """Where every token's second write has rate 0 it is the gated delta rule; the window of its chunks is in tokens."""
    rule = presets.deltaproduct(DIM)
    case = case_of(presets.gated_deltanet(DIM))
    rate = np.stack([case.gates.rate, np.zeros(14)], 1)
    k, v = (with_writes(rule, x[None])[0] for x in (case.k, case.v))
    got = run(rule, case._replace(k=k, v=v, gates=case.gates._replace(rate=rate)))
    want = run(presets.gated_deltanet(DIM), case)
    close((got[0], got[1]), (want[0], want[1]), 1e-12)


def test_longhorn_at_a_large_rate_answers_its_key_and_never_overshoots() -> None:
    rule = presets.longhorn(DIM)
    case = case_of(rule)
    case = case._replace(k=3 * case.k, gates=case.gates._replace(rate=np.full(14, 1e9)))
    y, _, _ = run(rule, case._replace(q=case.k), clip=None)
    close(y, case.v, 1e-6)


def test_mesa_is_regression_over_all_that_was_read() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 9, DIM))
    memory = miras(presets.mesa(DIM, ridge=0.3), chunk=4, clip=None)
    ones = np.ones(9)
    empty = memory.init(jax.tree.map(np.asarray, presets.mesa(DIM).architecture.init(jax.random.key(0))))
    y, state, _ = jax.jit(memory.update, compiler_options=QUICK)(empty, q, k, v, Gates(ones, ones, ones))
    padded = np.concatenate([k, 0.3**0.5 * np.eye(DIM)]), np.concatenate([v, np.zeros((DIM, DIM))])
    want = np.linalg.lstsq(*padded, rcond=None)[0]
    close((y[-1], memory.read(state, q)), (q[-1] @ want, q @ want), 1e-9)


def test_training_does_not_move_what_mesa_sums_its_keys_from() -> None:
    """H + ridge I may be singular where H starts anywhere: 60 steps of training found such an H."""
    case, memory = case_of(presets.mesa(DIM)), miras(presets.mesa(DIM), chunk=4)

    def objective(weights: dict[str, jax.Array]) -> jax.Array:
        return memory.update(memory.init(weights), case.q, case.k, case.v, case.gates)[0].sum()

    weights = {name: np.random.default_rng(0).normal(size=(DIM, DIM)) for name in ("g", "h")}
    found = jax.jit(jax.grad(objective), compiler_options=QUICK)(weights)
    assert not found["h"].any() and found["g"].all()


def test_muon_once_a_chunk_of_one_token_writes_what_it_writes_per_token() -> None:
    """The state is the same; a token's own read sees its write only where the step is per token."""
    rules = [presets.titans_linear(DIM)._replace(learner=learner.muon(every)) for every in ("chunk", "token")]
    case = case_of(rules[0], tokens=6)
    (y, chunk, _), (y1, token, _) = (run(rule, case, chunk=1) for rule in rules)
    close(chunk, token, 1e-12)
    assert np.abs(y - y1).max() > 1e-3


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
def test_orthogonalise_is_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    S = np.random.default_rng(0).normal(size=shape)
    close(orthogonalise(jnp.asarray(S)), newton_schulz(S), 1e-10)
    assert np.isfinite(jax.grad(lambda S: orthogonalise(S).sum())(jnp.zeros(shape))).all()


def test_lact_keeps_every_units_norm_and_is_the_paper_without_a_clip() -> None:
    case = case_of(presets.lact(DIM), r=0)
    first = absolute(case.state)
    state = miras(presets.lact(DIM), chunk=CHUNK).init(first)
    case = case._replace(state=state, gates=case.gates._replace(keep=np.ones(14)))
    y, after, _ = run(presets.lact(DIM), case, clip=None)
    want, _ = lact(first, *case[1:4], *case.gates[:3], CHUNK)
    close(y, want, 1e-9)
    for name, w in first.items():
        close(np.linalg.norm(absolute(after)[name], axis=0), np.linalg.norm(w, axis=0), 1e-9)


def test_exponential_features_are_the_terms_of_exp() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 3)) / 2
    phi = jax.jit(features.exponential(3, degree=8).phi, compiler_options=QUICK)
    close((phi(jnp.asarray(x)) * phi(jnp.asarray(y))).sum(-1), np.exp((x * y).sum(-1)), 1e-4)
    learned = features.exponential(3, 2, coefficients=jnp.asarray([0.5, 2.0, 3.0])).phi
    dots = (x * y).sum(-1)
    close((learned(jnp.asarray(x)) * learned(jnp.asarray(y))).sum(-1), 0.5 + 2 * dots + 3 * dots**2, 1e-12)


def test_a_featured_network_begins_as_the_network_it_is_made_of() -> None:
    inner = architecture.gated(DIM, 2)
    rules = [
        Rule(network, bias.l2(), retention.decay(), learner.gradient_descent())
        for network in (inner, architecture.featured(inner, features.polynomial(DIM, 3)))
    ]
    q = np.random.default_rng(0).normal(size=(5, DIM))
    plain, featured = (
        (memory := miras(rule, chunk=4)).read(memory.init(rule.architecture.init(jax.random.key(0))), q)
        for rule in rules
    )
    close(featured, plain, 1e-6)


def called(rule: Rule, kv: tuple[int, ...] = (6, 4), weight: tuple[int, ...] | None = None) -> None:
    memory = miras(rule, chunk=4)
    state = memory.init(rule.architecture.init(jax.random.key(0)))
    gates = Gates(jnp.ones(6), jnp.ones(6), jnp.ones(6), weight=None if weight is None else jnp.ones(weight))
    memory.update(state, jnp.ones((6, 4)), jnp.ones(kv), jnp.ones(kv), gates)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: features.polynomial(64, 4), "degree: 4 of 64 variables; .* at most 16384"),
        (lambda: features.exponential(4, 0), "degree: 0"),
        (lambda: learner.muon("layer"), "every: 'layer'; it must be token or chunk"),
        (lambda: miras(presets.swla(4, window=0), chunk=4), "window: 0"),
        (lambda: called(presets.titans_linear(4), weight=(6,)), "gates.weight: .* must be None"),
        (lambda: called(presets.swla(4), weight=(5,)), r"gates.weight: shape \(5,\); it must be \[6\]"),
        (lambda: called(presets.deltaproduct(4)), r"they must be \[T, D\], \[T, 2, D\] and"),
        (lambda: called(presets.deltaproduct(4), kv=(6, 2, 4)), r"gates.rate: shape \(6,\); it must be \[6, 2\]"),
        (
            lambda: architecture.featured(architecture.mesa(4), features.polynomial(4)),
            "no weight of this network says",
        ),
    ],
)
def test_wrong_choices(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()
