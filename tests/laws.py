"""What every memory must obey: members x laws. A new preset is one row in `PRESETS` and inherits them all.

A member is a rule with a kind of keep gate; a law takes a member and an implementation that serves it, and fails by an
assertion. See `tests.tolerance` for what "equal" means.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.compiling import QUICK
from tests.memory.situations import (
    CHUNK,
    DIM,
    ROWS,
    TOKENS,
    Case,
    Member,
    absolute,
    at_chunk_ends,
    changed,
    pieced,
    results,
    row,
    rowwise,
    situations,
)
from tests.tolerance import SEEDS, as_precise, close
from titans_jax.memory import (
    PRESETS,
    Architecture,
    Gates,
    Rule,
    architecture,
    bias,
    features,
    learner,
    miras,
    presets,
    retention,
)
from titans_jax.memory.unroll import linearise


def given_network() -> Architecture:
    """M(x) = x + tanh(x U) V / 2, as a user would write it: other names, a hidden size of its own, no channels."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"up": jax.random.normal(key, (DIM, 3)), "down": jax.random.normal(key, (3, DIM))}

    return Architecture(init, lambda linear, x: x + linear("down", jnp.tanh(linear("up", x))) / 2, {})


def variant(network: Architecture) -> Rule:
    return Rule(network, bias.l2(), retention.decay(), learner.momentum())


VARIANTS = {
    "titans_depth1": presets.titans(DIM, depth=1),
    "titans_depth3": presets.titans(DIM, depth=3, expansion=2),
    "titans_order2": presets.titans(DIM, order=2, expansion=2),
    "titans_linear_order3": presets.titans_linear(DIM)._replace(learner=learner.momentum(3)),
    "titans_linear_fresh": presets.titans_linear(DIM, grad_at="previous"),
    "titans_to_origin": presets.titans(DIM, to_origin=True),
    "titans_linear_fresh_to_origin": presets.titans_linear(DIM, grad_at="previous")._replace(
        retention=retention.decay(to_origin=True)
    ),
    "dgd_to_origin": presets.dgd(DIM, expansion=2, to_origin=True),
    "gated": variant(architecture.gated(DIM, 2)),
    "swiglu": variant(architecture.swiglu(DIM, 2)),
    "given": variant(given_network()),
    "titans_elastic": presets.titans(DIM)._replace(retention=retention.elastic_net(0.1)),
    "fresh_lq": presets.titans_linear(DIM, grad_at="previous")._replace(retention=retention.lq(4)),
    "ttt_logistic": presets.ttt_linear(DIM)._replace(retention=retention.logistic()),
    "memora_token": presets.memora(DIM, every="token"),
    "titans_linear_window": presets.titans_linear(DIM)._replace(learner=learner.momentum(window=CHUNK + 3)),
    "muon": Rule(architecture.linear(DIM), bias.l2(), retention.decay(to_origin=True), learner.muon(window=2)),
    "muon_token": Rule(architecture.linear(DIM), bias.l2(), retention.decay(), learner.muon("token")),
    "lact_linear": Rule(architecture.linear(DIM), bias.dot(), retention.renormalised(), learner.large_chunk()),
    "features": variant(architecture.featured(architecture.gated(DIM, 2), features.exponential(DIM))),
    "atlas_token": presets.atlas(DIM, expansion=2, every="token"),
}
RULES = {name: preset(DIM) for name, preset in PRESETS.items()} | VARIANTS


def reads_keep(rule: Rule) -> bool:
    def F(keep: float) -> np.ndarray:
        return np.asarray(linearise(rule.learner, Gates(*(jnp.full(2, x) for x in (0.5, 0.5, keep))))[0])

    return not np.array_equal(F(0.2), F(0.7))


# Rows that are one rule with another, told apart by their gates: their recurrences are tried, the laws once.
SAME = tuple(presets.ALIASES)
# What the fast lane can pay for, since every member is a program of its own to compile: each kind of engine, learner,
# link and window once. The slow lane has all rows.
FAST = ("titans", "linear_attention", "gated_deltanet", "ttt_linear", "memora", "swla")
FAST += ("dgd_linear", "titans_to_origin", "titans_linear_fresh", "titans_order2", "given")
FAST_CHANNELS = ("titans", "gated_deltanet")


def in_fast_lane(member: Member) -> bool:
    return member.row in (FAST_CHANNELS if member.channel else FAST)


# A keep per channel takes the same path whatever the rule: a row for each engine, link and learner.
CHANNELS = (
    *FAST_CHANNELS,
    "linear_attention",
    "deltanet",
    "titans_to_origin",
    "memora",
    "dgd_linear",
    "muon",
    "mesa",
    "hgrn2",
)

# A fast variant's laws go without gradients, which the slow lane then compiles for it.
MEMBERS = [Member(name, rule, gradients=name in PRESETS or name not in FAST) for name, rule in RULES.items()]
MEMBERS += [
    Member(name, rule, channel=True, gradients=name != "titans")  # one of the fast lane's two has its gradients there
    for name, rule in RULES.items()
    if name in CHANNELS and reads_keep(rule)
]


def same(got: Any, want: Any, what: str = "") -> None:
    """Equal bit for bit."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=what)


# The laws.


def equal_to_recurrent(
    member: Member,
    implementation: str,
    gradients: bool | None = None,
    tolerance: float = 1e-9,
    chunk: int = CHUNK,
    read_at: str = "after",
    **situation: Any,
) -> None:
    """1: values, state, info, and the gradients by q, k, v, every gate and the whole initial state."""
    gradients = member.gradients if gradients is None else gradients
    if situation.get("dtype") == "float32":
        return as_precise_as_recurrent(member, implementation, gradients, chunk)
    case = situations(member, chunk=chunk, **situation)
    got, want = (by_part(member, name, case, chunk, gradients, read_at) for name in (implementation, "recurrent"))
    for what in want:
        close(got[what], want[what], tolerance, what)


def by_part(
    member: Member, implementation: str, case: Case, chunk: int, gradients: bool, read_at: str = "after"
) -> dict[str, Any]:
    """The results of a call, parted where errors differ in size."""
    y, state, info, slopes = jax.device_get(rowwise(member, implementation, chunk, gradients, read_at)(case))
    parts = {"y": y, "state": state, "info": at_chunk_ends(info, case.state.step, chunk)}
    return parts | ({"gradient by ": slopes} if gradients else {})


def as_precise_as_recurrent(member: Member, implementation: str, gradients: bool = True, chunk: int = CHUNK) -> None:
    """1, in float32: within three times the recurrence's own error; the truth is the recurrence in float64."""
    got, own, exact = [], [], []
    for seed in SEEDS:
        case = situations(member, chunk=chunk, dtype="float32", seed=seed)
        wide = jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, case)
        got.append(by_part(member, implementation, case, chunk, gradients))
        own.append(by_part(member, "recurrent", case, chunk, gradients))
        exact.append(by_part(member, "recurrent", wide, chunk, gradients))
    for what in exact[0]:
        as_precise(*([result[what] for result in results] for results in (got, own, exact)), what)


def any_split(member: Member, implementation: str) -> None:
    """2: token by token, in random pieces, and in pieces with single tokens by recurrent (what None does)."""
    case = situations(member)
    y, state, _, _ = results(member, implementation, case)
    pieces = np.random.default_rng(1).permutation([5, 5, 1, 1, 1, 1])
    for r in (0, 4, 5):
        for lengths, stepwise in (([1] * TOKENS, implementation), (pieces, implementation), (pieces, "recurrent")):
            got, carried = pieced(member, implementation, stepwise, row(case, r), lengths)
            close((got, carried), row((y, state), r), 1e-9, f"row {r} in {list(lengths)}: ")


def causal(member: Member, implementation: str) -> None:
    """3: another token t changes no output, surprise or gradient norm before t, bit for bit; row 4 is clipped."""
    case = situations(member)
    y, _, info, _ = results(member, implementation, case)
    assert np.asarray(info.clipped)[4].any(), "the clip was meant to bind"
    for t in range(1, TOKENS):
        y1, _, info1, _ = results(member, implementation, changed(case, (slice(None), t)))
        before = [(x[:, :t], x1[:, :t]) for x, x1 in zip((y, *info[:2]), (y1, *info1[:2]), strict=True)]
        for x, x1 in before:
            same(x1, x, f"token {t} seen before it was read")
        assert (np.asarray(y1)[:, t] != np.asarray(y)[:, t]).any(-1).all()


def alive(member: Member, implementation: str) -> None:
    """4: the first token's value moves the last output, three chunks later, through the memory alone."""
    case = situations(member)
    y = np.asarray(results(member, implementation, case)[0])
    other = case._replace(v=case.v.copy())
    other.v[:, 0, 0] += 1.0
    moved = np.abs(np.asarray(results(member, implementation, other)[0]) - y).max(-1)[:, -1]
    assert (moved[[0, 5]] > 1e-7).all(), moved


def rows_apart(member: Member, implementation: str) -> None:
    """5: under vmap over sequences and heads, another row changes no row but itself, bit for bit."""
    case = situations(member)
    y, state, info, _ = results(member, implementation, case)
    for r in range(ROWS):
        others = np.delete(np.arange(ROWS), r)
        got = results(member, implementation, changed(case, r))
        same(row(got[:3], others), row((y, state, info), others), f"row {r} seen by another")
        assert (np.asarray(got[0])[r] != np.asarray(y)[r]).any()


def repeatable(member: Member, implementation: str) -> None:
    """6: two equal calls give equal results, gradients too."""
    case = situations(member)
    same(results(member, implementation, case), results(member, implementation, case))


def link_undoes_lift(member: Member, implementation: str) -> None:
    """7: link(lift(W)) = W, also as the state that a memory begins with."""
    memory = miras(member.rule, chunk=CHUNK, implementation=implementation)
    retention = member.rule.retention

    def twice(dual: Any) -> Any:
        weights = jax.vmap(retention.link)(dual)
        first = jax.vmap(memory.init)(weights)
        again = retention.link(first.anchor), retention.link(retention.lift(weights)), first.weights or weights
        return again, (weights,) * 3

    close(*jax.jit(twice, compiler_options=QUICK)(absolute(situations(member).state)), 1e-12)


def in_range(member: Member, dual: Any) -> Any:
    """Weights that the retention can hold."""
    link = jax.jit(jax.vmap(member.rule.retention.link), compiler_options=QUICK)
    return jax.device_get(link(dual))


def nothing_written(member: Member, implementation: str) -> None:
    """8: rate 0 and keep 1 leave the dual as it was, whatever the momentum, and y is what `read` says."""
    memory = miras(member.rule, chunk=CHUNK, implementation=implementation)
    case = situations(member)
    rate, keep = np.zeros_like(case.gates.rate), np.ones_like(case.gates.keep)
    weights = in_range(member, absolute(case.state))
    state = jax.device_get(jax.jit(jax.vmap(memory.init), compiler_options=QUICK)(weights))
    if state.origin is not None and member.rule.retention.end is None:  # somewhere else than at the origin
        half = jax.tree.map(lambda w: w / 2, weights)
        state = state._replace(dual=half, origin=half)
    case = Case(state, *case[1:4], Gates(rate, case.gates.momentum, keep))
    y, after, _, _ = results(member, implementation, case)
    same(after.dual, state.dual)
    close(y, jax.jit(jax.vmap(memory.read), compiler_options=QUICK)(state, case.q), 1e-12)


def constant_state(member: Member, implementation: str) -> None:
    """9: the state has the same shapes and dtypes after any number of tokens as before."""
    memory = miras(member.rule, chunk=CHUNK, implementation=implementation)
    for tokens in (1, 3, 33):
        case = row(situations(member, tokens=tokens), 5)
        shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(case.state)]
        after = jax.eval_shape(memory.update, *case)[1]
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == shapes


LAWS = (
    equal_to_recurrent,
    any_split,
    causal,
    alive,
    rows_apart,
    repeatable,
    link_undoes_lift,
    nothing_written,
    constant_state,
)
