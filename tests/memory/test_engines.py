"""What an engine serves beside the laws: spans, resets, weight residuals, number formats; and what it never makes."""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.jaxprs import equations
from tests.laws import MEMBERS, RULES, SAME, close, in_fast_lane, same
from tests.memory.situations import CHUNK, Case, row, situations
from titans_jax.memory import PRESETS, Gates, Restart, Span, State, miras
from titans_jax.memory.scan import GROUP

BY_NAME = {member.name: member for member in MEMBERS}
ENGINES = [("titans", "chunked"), ("titans-channel", "recurrent"), ("gated_deltanet-channel", "exact")]
engines = pytest.mark.parametrize("name, implementation", ENGINES, ids=["-".join(pair) for pair in ENGINES])


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def update(name: str, implementation: str) -> Any:
    return jax.jit(miras(BY_NAME[name].rule, chunk=CHUNK, implementation=implementation).update, compiler_options=QUICK)


def tokens(case: Case, start: int, stop: int) -> tuple[Any, ...]:
    return jax.tree.map(lambda x: x[start:stop], tuple(case)[1:])


@engines
def test_span_passes_over_the_rows_that_are_not_tokens(name: str, implementation: str) -> None:
    run = update(name, implementation)
    case = row(situations(BY_NAME[name], tokens=16), 5)  # begins at row 2 of a chunk
    for count in (9, 1, 0):
        y, state, info = jax.device_get(run(*case, span=Span(np.int32(2), np.int32(count))))
        want, want_state, want_info = case.q[:0], case.state, None
        if count:
            want, want_state, want_info = jax.device_get(run(case.state, *tokens(case, 2, 2 + count)))
        close((y[2 : 2 + count], state), (want, want_state), 1e-12, f"{count} tokens: ")
        if want_info is not None:
            close(info.surprise[2 : 2 + count], want_info.surprise, 1e-12)


@engines
@pytest.mark.parametrize("aligned", [False, True], ids=["anywhere", "span"])
def test_restart_begins_the_memory_anew_where_a_chunk_begins(name: str, implementation: str, aligned: bool) -> None:
    """The same as two separate runs; a mask inside a chunk, or on a row that is no token, does nothing."""
    run = update(name, implementation)
    case, anew = row(situations(BY_NAME[name], tokens=16), 5), row(situations(BY_NAME[name], seed=1), 0).state
    first = 2 if aligned else 0  # rows of chunks begin at 2, 6, 10 of the call, or at 4, 8, 12 of the grid
    mask = np.zeros(16, bool)
    mask[[first + 5, first + 6, first + 7]] = True
    span = {"span": Span(np.int32(2), np.int32(12))} if aligned else {}
    mask[:first] = mask[14:] = aligned
    begun = case.state._replace(step=np.int32(6))
    y, state, _ = jax.device_get(run(begun, *case[1:], reset=Restart(mask, anew), **span))
    stop = 14 if aligned else 16
    before, _, _ = run(begun, *tokens(case, first, first + 6))
    after, want, _ = run(anew, *tokens(case, first + 6, stop))
    want = want._replace(step=np.int32(6 + stop - first))  # the count of tokens goes on
    close((y[first:stop], state), (np.concatenate([before, after]), jax.device_get(want)), 1e-12)


@pytest.mark.parametrize("name", [pytest.param("titans", marks=pytest.mark.slow), "gated_deltanet"])
@pytest.mark.parametrize("aligned", [pytest.param(False, marks=pytest.mark.slow), True], ids=["anywhere", "span"])
def test_many_chunks_go_by_groups(name: str, aligned: bool) -> None:
    """Whole groups of chunks, and some that remain: values and gradients as token by token."""
    length, chunk, rule = 2 * (3 * GROUP + 2), 2, BY_NAME[name].rule
    _, q, k, v, gates = row(situations(BY_NAME[name], tokens=length), 0)
    gates = gates._replace(rate=1e-4 * gates.rate)  # of large steps rounding grows over so many chunks
    weights = rule.architecture.init(jax.random.key(0))
    span = {"span": Span(0, length)} if aligned else {}

    def results(implementation: str | None, **span: Span) -> Any:
        memory = miras(rule, chunk=chunk, implementation=implementation)

        def loss(*inputs: Any) -> tuple[Any, Any]:
            weights, *tokens = inputs
            y, state, info = memory.update(memory.init(weights), *tokens, **span)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), (y, state, info.surprise)

        run = jax.jit(jax.grad(loss, argnums=range(5), has_aux=True), compiler_options=QUICK)
        return jax.device_get(run(weights, q, k, v, gates))

    close(results(None, **span), results("recurrent"), 1e-9)


def residual_run(name: str, implementation: str) -> Any:
    memory = miras(BY_NAME[name].rule, chunk=CHUNK, implementation=implementation)

    def objective(floats: tuple[Case, Any], step: Any, aligned: bool) -> Any:
        case, residual = floats
        span = Span(step % CHUNK, 9) if aligned else None
        q, k, v, gates = case[1:]
        state = case.state._replace(step=step)
        y, state, info = memory.update(state, q, k, v, gates, span=span, residual=residual)
        y = jax.lax.dynamic_slice_in_dim(y, step % CHUNK, 9) if aligned else y
        return (y**2).sum(), (y, state, info.anchors)

    return jax.jit(jax.grad(objective, has_aux=True), static_argnums=2, compiler_options=QUICK)


@pytest.mark.parametrize("name, aligned", [("titans_linear", False), ("titans", True)], ids=["anywhere", "span"])
def test_weight_residual_is_the_same_in_chunks(name: str, aligned: bool) -> None:
    """Values, gradients and the anchors that it reports; and it moves every token's gradient."""
    case = row(situations(BY_NAME[name], tokens=12 if aligned else 9), 5)
    step = case.state.step
    rng = np.random.default_rng(0)
    residual = jax.tree.map(lambda w: 0.3 * rng.normal(size=(3, *w.shape)), case.state.dual)
    floats = (case._replace(state=case.state._replace(step=None)), residual)
    chunked, recurrent = residual_run(name, "chunked"), residual_run(name, "recurrent")
    got, want = (jax.device_get(run(floats, step, aligned)) for run in (chunked, recurrent))
    close(got, want, 1e-9)
    _, (plain, _, _) = chunked((floats[0], jax.tree.map(np.zeros_like, residual)), step, aligned)
    _, (y, _, anchors) = got
    assert np.abs(y - plain).max(-1).min() > 1e-6
    same(jax.tree.map(lambda a: a[0], anchors), case.state.anchor)


def largest(jaxpr: Any) -> int:
    """Elements of the largest array that any equation makes."""
    return max(x.aval.size for equation in equations(jaxpr) for x in equation.outvars)


def largest_of(name: str, channel: bool, implementation: str, length: int, dim: int, chunk: int) -> tuple[int, int]:
    """The largest array of the update's forward and backward pass, and the size of the smallest weight matrix."""
    preset = PRESETS[name]
    # of degree 1, so that all weights are of a size, and so the states of all chunks are below T |W|
    rule = preset(dim, **{"degree": 1} if "degree" in inspect.signature(preset).parameters else {})
    memory = miras(rule, chunk=chunk, implementation=implementation)

    def objective(weights: Any, q: Any, k: Any, v: Any, gates: Gates) -> Any:
        y, state, info = memory.update(memory.init(weights), q, k, v, gates)
        return (y**2).sum() + info.surprise.sum() + sum((x**2).sum() for x in jax.tree.leaves(state.dual))

    weights = jax.eval_shape(rule.architecture.init, jax.random.key(0))
    rows, scalar = jax.ShapeDtypeStruct((length, dim), "float32"), jax.ShapeDtypeStruct((length,), "float32")
    gates, written = Gates(scalar, scalar, rows if channel else scalar), rows
    if (m := rule.learner.writes) > 1:
        gates = gates._replace(rate=jax.ShapeDtypeStruct((length, m), "float32"))
        written = jax.ShapeDtypeStruct((length, m, dim), "float32")
    arguments = (weights, rows, written, written, gates)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(objective, argnums=(0, 1, 2, 3, 4)))(*arguments)
    return largest(jaxpr.jaxpr), min(w.size for n, w in weights.items() if w.shape[0] > 1)


MATMULS = [
    pytest.param(m.row, m.channel, i, id=f"{m.name}-{i}", marks=() if in_fast_lane(m) else pytest.mark.slow)
    for m in MEMBERS
    for i in m.implementations
    if m.preset and m.row not in SAME and i != "recurrent"
]


@pytest.mark.parametrize("name, channel, implementation", MATMULS)
def test_no_array_of_tokens_times_weights(name: str, channel: bool, implementation: str) -> None:
    """Forward and backward of many chunks: nothing reaches T |W| elements, |W| the smallest weight matrix."""
    found, weight = largest_of(name, channel, implementation, length=256, dim=32, chunk=4)
    assert found < 256 * weight


def test_the_search_for_tokens_times_weights_finds_them_where_they_are() -> None:
    found, weight = largest_of("titans", False, "recurrent", length=256, dim=32, chunk=4)
    assert found >= 256 * weight, "recurrent keeps every token's weights for its backward pass"


@pytest.mark.parametrize("name, implementation", ENGINES[::2], ids=["chunked", "exact"])
def test_bfloat16_inputs_are_computed_in_float32(name: str, implementation: str) -> None:
    """The state stays float32 and y gets the inputs' dtype: the same as rounding the inputs and the output alone."""
    run, case = update(name, implementation), row(situations(BY_NAME[name], dtype="float32"), 0)
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tuple(case)[1:])
    y, state, info = run(case.state, *rounded)
    want, want_state, _ = run(case.state, *jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    assert y.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((state._replace(step=None), info))} == {jnp.dtype("float32")}
    same((y, state), (want.astype(jnp.bfloat16), want_state))


def test_bfloat16_weights_begin_a_float32_memory() -> None:
    memory = miras(RULES["titans"], chunk=CHUNK)
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), row(situations(BY_NAME["titans"]), 0).state.dual)
    state = memory.init(weights)
    assert {x.dtype for x in jax.tree.leaves(state._replace(step=None))} == {jnp.dtype("float32")}
    same(state.dual, weights)


def test_a_state_may_be_donated_whole() -> None:
    """Every leaf is a buffer of its own, also where dual and anchor hold the same numbers."""
    memory = miras(RULES["titans_linear"], chunk=CHUNK)
    case = row(situations(BY_NAME["titans_linear"]), 0)

    def count(state: State) -> State:
        return memory.update(state, *case[1:])[1]

    state = memory.init(jax.tree.map(jnp.asarray, case.state.dual))
    want = jax.device_get(jax.jit(count, compiler_options=QUICK)(state))
    close(jax.jit(count, donate_argnums=0, compiler_options=QUICK)(state), want, 1e-12)


@pytest.mark.parametrize("name", ["titans_linear", "gated_deltanet"])
def test_none_is_the_first_that_serves_and_steps_at_one_token(name: str) -> None:
    member = BY_NAME[name]
    case = row(situations(member), 5)
    automatic = jax.jit(miras(member.rule, chunk=CHUNK).update, compiler_options=QUICK)
    for start, stop, implementation in ((0, 5, member.implementations[0]), (5, 6, "recurrent")):
        arguments = (case.state, *tokens(case, start, stop))
        same(automatic(*arguments), update(name, implementation)(*arguments))


def test_read_does_not_write() -> None:
    """read is what y would be at rate 0: the memory as it stands."""
    member = BY_NAME["titans"]
    case, memory = row(situations(member), 5), miras(member.rule, chunk=CHUNK)
    still = Gates(np.zeros(14), case.gates.momentum * 0, np.ones(14))
    state = jax.device_get(memory.init(case.state.dual))
    y, _, _ = update("titans", "chunked")(state, *case[1:4], still)
    close(memory.read(state, case.q), y, 1e-12)
