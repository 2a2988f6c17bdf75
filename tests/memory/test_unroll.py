"""Coefficients: F and G of every learner as printed, and their products over a chunk, by hand in float64 numpy."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import close
from titans_jax.memory import Gates, Learner, learner
from titans_jax.memory.types import Architecture
from titans_jax.memory.unroll import coefficients, linearise, unroll

OFFSETS = (0.1, -0.2, 0.05, -0.4, 0.3, 0.0, -0.1, 0.2)  # the fourth makes max(0, .) bind


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def descent(rate, momentum, keep, position):
    return [[keep]], [-rate]


def momentum(rate, momentum, keep, position):
    """Titans Eq 13-14, z = (A, S)."""
    return [[keep, momentum], [0, momentum]], [-rate, -rate]


def momentum3(rate, momentum, keep, position):
    """z = (A, S3, S2, S1): each trace has its own past and every new one that drives it."""
    m = momentum
    return [[keep, m, m, m], [0, m, m, m], [0, 0, m, m], [0, 0, 0, m]], [-rate] * 4


def muon(rate, momentum, keep, position):
    return [[keep, 0], [0, momentum]], [0, -1]


def large_chunk(rate, momentum, keep, position):
    return [[keep, 0], [0, 1 if position else momentum]], [0, -rate]


def averaged(offsets):
    def printed(rate, momentum, keep, position):
        def scale(row):
            return max(0, 1 / (row + 1) + offsets[row])

        now = scale(position)
        if position == 0:
            return [[1, 0], [0, 0]], [-now * rate, -rate]
        return [[1, now - scale(position - 1)], [0, 1]], [-now * rate, -rate]

    return printed


PRINTED: dict[str, tuple[Learner, Callable]] = {
    "gradient_descent": (learner.gradient_descent(), descent),
    "deltanet": (learner.gradient_descent("previous"), descent),
    "implicit": (learner.implicit(), descent),
    "complement": (learner.complement(), descent),
    "momentum": (learner.momentum(), momentum),
    "momentum3": (learner.momentum(3), momentum3),
    "muon": (learner.muon(), muon),
    "muon_token": (learner.muon("token"), muon),
    "large_chunk": (learner.large_chunk(), large_chunk),
    "averaged": (learner.averaged(), averaged([0] * 8)),
    "averaged_offsets": (learner.averaged(OFFSETS), averaged(OFFSETS)),
}
NAMES = pytest.mark.parametrize("name", PRINTED)


def gates(rows: int = 6) -> Gates:
    """Ordinary ones, and exact zeros and ones."""
    rng = np.random.default_rng(0)
    made = rng.uniform(0, 1, (3, rows))
    made[:, 1:2], made[:, 2:3] = 0, 1
    return Gates(*made)


@NAMES
def test_every_learner_has_the_printed_coefficients(name: str) -> None:
    made, printed = PRINTED[name]
    rows = [printed(*(gate[t] for gate in gates()[:3]), t) for t in range(6)]
    F, G = (np.array(x, np.float64) for x in zip(*rows, strict=True))
    close(linearise(made, jax.tree.map(jnp.asarray, gates())), (F, G), 1e-15)


@NAMES
def test_steps_are_linear(name: str) -> None:
    """Of the sum of two states and gradients the step is the sum of the steps: the coefficients are all there is."""
    made, _ = PRINTED[name]
    rng = np.random.default_rng(1)
    n = 1 + made.traces
    first, second = (tuple(rng.normal(size=(n + 1, 3, 2))) for _ in range(2))
    for t in range(6):
        at = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), gates())
        step = lambda z, at=at, t=t: made.step(z[:n], z[n], at, jnp.asarray(t))
        both = tuple(2 * a - 3 * b for a, b in zip(first, second, strict=True))
        want = jax.tree.map(lambda a, b: 2 * a - 3 * b, step(first), step(second))
        close(step(both), want, 1e-13, f"row {t}: ")


unrolled = jax.jit(unroll, static_argnums=0, compiler_options=QUICK)


UNROLLED = [
    pytest.param(*case, id="-".join(map(str, case)), marks=() if fast else pytest.mark.slow)
    for name in ("gradient_descent", "momentum3", "large_chunk", "averaged_offsets")
    for case, fast in (
        ((name, 1, 1), name == "momentum3"),
        ((name, 6, 1), True),
        ((name, 8, 1), name == "averaged_offsets"),
        ((name, 6, 3), name != "large_chunk"),
    )
]


@pytest.mark.parametrize("name, rows, window", UNROLLED)
def test_unrolled_steps_are_the_steps_one_by_one(name: str, rows: int, window: int) -> None:
    """z_0 and every gradient, also where rows in front and behind are no tokens; and the dual before a row's step."""
    made, printed = PRINTED[name]
    made = made._replace(window=window)
    n, c = 1 + made.traces, window
    rng = np.random.default_rng(2)
    z0, g = rng.normal(size=n), rng.normal(size=c - 1 + rows)
    for first, stop in ((0, rows), (rows // 3, rows - rows // 3)):
        valid, z, duals, before = np.zeros(rows, bool), z0, [], {"previous": [], "decayed": []}
        valid[first:stop] = True
        for t in range(rows):
            F, G = (np.array(x, np.float64) for x in printed(*(gate[t] for gate in gates(rows)[:3]), t))
            before["previous"].append(z[0])
            before["decayed"].append((F @ z)[0] if valid[t] else z[0])
            z = F @ z + G * g[t : t + c].sum() if valid[t] else z
            duals.append(z[0])
        u = unrolled(made, gates(rows), None if valid.all() else valid)
        got = u.initial_weight @ z0 + u.grad_weight @ g
        close((got, u.last_initial @ z0 + u.last_grad @ g), (np.array(duals), z), 1e-12)
        for grad_at, want in before.items():
            if window == 1:
                at = u.before(grad_at)
                close(at.initial_weight @ z0 + at.grad_weight @ g, np.array(want), 1e-12, grad_at)


def test_a_keep_per_channel_is_a_keep_for_each_channel() -> None:
    """Its mean where a weight has no channel."""
    keep = np.random.default_rng(3).uniform(size=(6, 3))
    given = jax.tree.map(jnp.asarray, gates()._replace(keep=keep))
    made = learner.momentum()
    plan = jax.jit(lambda gates: coefficients(made, gates, None), compiler_options=QUICK)(given)
    network = Architecture(lambda key: {}, lambda linear, x: x, {"w1": "in"})
    axis, u = plan.of(network, "w1")
    assert axis == "in" and plan.of(network, "w2")[0] is None
    for i in range(3):
        alone = unrolled(made, given._replace(keep=given.keep[:, i]), None)
        close(jax.tree.map(lambda x, i=i: x[..., i], u), alone, 1e-15)
    mean = unrolled(made, given._replace(keep=given.keep.mean(-1)), None)
    close(plan.of(network, "w2")[1], mean, 1e-15)
