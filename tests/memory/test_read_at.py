"""`miras(read_at=...)`: the weights that y_t is read from, against the recurrences by hand, and in chunks."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.laws import MEMBERS, close, equal_to_recurrent
from tests.memory.situations import CHUNK, DIM, TOKENS, Member, row, situations
from tests.oracles import delta, recurrences
from titans_jax.memory import Rule, miras, presets


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def product(weights: Any, x: np.ndarray) -> np.ndarray:
    return x @ weights["w"]


titans_to_origin = functools.partial(recurrences.titans, to_origin=True)
RULES: dict[str, tuple[Rule, Any, Callable[..., np.ndarray]]] = {
    "titans": (presets.titans(DIM, expansion=2), recurrences.titans, recurrences.residual_mlp),
    "titans_to_origin": (
        presets.titans(DIM, expansion=2, to_origin=True),
        titans_to_origin,
        recurrences.residual_mlp,
    ),
    "titans_linear": (presets.titans_linear(DIM), recurrences.titans_linear, product),
    "titans_linear_fresh": (presets.titans_linear(DIM, "previous"), recurrences.titans_linear_fresh, product),
    "deltanet": (presets.deltanet(DIM), recurrences.deltanet, product),
    "gated_deltanet": (presets.gated_deltanet(DIM), recurrences.gated_deltanet, product),
    "dgd_linear": (presets.dgd_linear(DIM), delta.dgd_linear, product),
    "dgd": (presets.dgd(DIM, expansion=2), delta.dgd, delta.network),
}
FAST = {"titans": (None, "recurrent"), "deltanet": (None,), "dgd": (None,)}  # a rule for each implementation
READS = [
    pytest.param(name, i, id=f"{name}-{i or 'chunks'}", marks=() if i in FAST.get(name, ()) else pytest.mark.slow)
    for name in RULES
    for i in (None, "recurrent")
]
SPLITS = ([TOKENS], [5, 5, 1, 1, 1, 1], [1, 5, 1, 1, 5, 1])  # each length is a program of its own


@pytest.mark.parametrize("read_at", ["before", "chunk_start"])
@pytest.mark.parametrize("name, implementation", READS)
def test_reads_are_those_of_the_recurrence(name: str, read_at: str, implementation: str | None) -> None:
    """The oracle's weights after the tokens before t, or before t's chunk; also where the clip binds, in any split."""
    rule, oracle, network = RULES[name]
    case = row(situations(Member(name, rule)), 4)
    rng, initial = np.random.default_rng(0), rule.architecture.init(jax.random.key(0))
    weights = {n: np.asarray(w) + 0.1 * rng.normal(size=w.shape) for n, w in initial.items()}

    def after(tokens: int) -> Any:
        q, k, v, gates = jax.tree.map(lambda x: x[:tokens], tuple(case)[1:])
        return oracle(weights, q, k, v, *gates[:3], CHUNK, 1.0)[1] if tokens else weights

    seen = [t if read_at == "before" else t // CHUNK * CHUNK for t in range(TOKENS)]
    want = np.array([network(after(count), case.q[t]) for t, count in enumerate(seen)])
    memory = miras(rule, chunk=CHUNK, implementation=implementation, read_at=read_at)
    update = jax.jit(memory.update, compiler_options=QUICK)
    for lengths in SPLITS:
        state, ys, at = jax.device_get(memory.init(weights)), [], 0
        for n in lengths:
            y, state, _ = update(state, *jax.tree.map(lambda x, at=at, n=n: x[at : at + n], tuple(case)[1:]))
            ys.append(y)
            at += n
        close(np.concatenate(ys), want, 1e-9, f"{lengths}: ")
        close(memory.read(state, case.q[:1])[0], network(after(TOKENS), case.q[0]), 1e-9, "read: ")


# A row for each engine, learner, link and window; each compiles two programs with gradients.
ROWS = ("titans", "gated_deltanet", "memora", "swla", "ttt_linear", "titans_order2", "dgd_linear", "lact")
ROWS += ("titans_to_origin", "dgd_to_origin")
SERVED = [
    pytest.param(m, i, marks=() if m.name in ("gated_deltanet", "swla") else pytest.mark.slow)
    for m in MEMBERS
    for i in m.implementations
    if m.row in ROWS and i != "recurrent"
]


@pytest.mark.parametrize("read_at", ["before", "chunk_start"])
@pytest.mark.parametrize("member, implementation", SERVED, ids=lambda x: getattr(x, "name", x))
def test_reads_are_the_same_in_chunks(member: Member, implementation: str, read_at: str) -> None:
    """Values, states and gradients, from any state at any offset."""
    equal_to_recurrent(member, implementation, gradients=True, read_at=read_at)


def test_what_is_not_known() -> None:
    with pytest.raises(ValueError, match="read_at: 'now'; known are after, before, chunk_start"):
        miras(presets.titans(DIM), chunk=CHUNK, read_at="now")
