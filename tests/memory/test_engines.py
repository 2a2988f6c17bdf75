"""What an engine serves beside the laws: masks, resets, weight residuals, number formats; and what it never makes."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import QUICK
from tests.jaxprs import equations
from tests.laws import MEMBERS, RULES, SAME, close, same
from tests.memory.situations import CHUNK, Case, absolute, fixed_weights, row, situations
from titans_jax.memory import PRESETS, Gates, Reset, State, miras
from titans_jax.memory.stream import GROUP

BY_NAME = {member.name: member for member in MEMBERS}
ENGINES = [("titans", "chunked"), ("titans-channel", "recurrent"), ("gated_deltanet-channel", "exact")]
engines = pytest.mark.parametrize("name, implementation", ENGINES, ids=["-".join(pair) for pair in ENGINES])


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def update(name: str, implementation: str) -> Any:
    return jax.jit(miras(BY_NAME[name].rule, chunk=CHUNK, implementation=implementation).update, compiler_options=QUICK)


def tokens(case: Case, start: int, stop: int) -> tuple[Any, ...]:
    return jax.tree.map(lambda x: x[start:stop], tuple(case)[1:])


def masked(name: str, implementation: str, valid: np.ndarray, known: bool) -> Any:
    """The update with this mask, which is known while tracing or not."""
    run = update(name, implementation)
    if not known:
        return functools.partial(run, valid=valid)
    memory = miras(BY_NAME[name].rule, chunk=CHUNK, implementation=implementation)
    return jax.jit(functools.partial(memory.update, valid=valid), compiler_options=QUICK)


@engines
@pytest.mark.parametrize("known", [False, True], ids=["traced", "known"])
def test_valid_passes_over_the_rows_that_are_not_tokens(name: str, implementation: str, known: bool) -> None:
    run = update(name, implementation)
    case = row(situations(BY_NAME[name], tokens=16), 5)  # begins at row 2 of a chunk
    for count in (9, 1, 0):
        valid = (np.arange(16) >= 2) & (np.arange(16) < 2 + count)
        y, state, info = jax.device_get(masked(name, implementation, valid, known)(*case))
        want, want_state, want_info = case.q[:0], case.state, None
        if count:
            want, want_state, want_info = jax.device_get(run(case.state, *tokens(case, 2, 2 + count)))
        close((y[2 : 2 + count], state), (want, want_state), 1e-12, f"{count} tokens: ")
        if want_info is not None:
            close(info.surprise[2 : 2 + count], want_info.surprise, 1e-12)


RESETS = [*ENGINES, ("titans_to_origin", "chunked")]


@pytest.mark.parametrize("name, implementation", RESETS, ids=["-".join(pair) for pair in RESETS])
@pytest.mark.parametrize("aligned", [False, True], ids=["anywhere", "valid"])
def test_reset_replaces_the_memory_where_a_chunk_begins(name: str, implementation: str, aligned: bool) -> None:
    """The same as two separate runs; a mask inside a chunk, or on a row that is no token, does nothing.

    It then has the reset state's weights, and goes on to forget towards the stream's own origin.
    """
    run = update(name, implementation)
    case, fresh = row(situations(BY_NAME[name], tokens=16), 5), row(situations(BY_NAME[name], seed=1), 0).state
    first = 2 if aligned else 0  # rows of chunks begin at 2, 6, 10 of the call, or at 4, 8, 12 of the grid
    mask = np.zeros(16, bool)
    mask[[first + 5, first + 6, first + 7]] = True
    valid = {"valid": (np.arange(16) >= 2) & (np.arange(16) < 14)} if aligned else {}
    mask[:first] = mask[14:] = aligned
    state = case.state._replace(step=np.int32(6))
    y, end, _ = jax.device_get(run(state, *case[1:], reset=Reset(mask, fresh), **valid))
    stop = 14 if aligned else 16
    before, _, _ = run(state, *tokens(case, first, first + 6))
    after, want, _ = run(on_origin(fresh, case.state.origin), *tokens(case, first + 6, stop))
    want = want._replace(step=np.int32(6 + stop - first))  # the count of tokens goes on
    close((y[first:stop], end), (np.concatenate([before, after]), jax.device_get(want)), 1e-12)


def test_no_reset_where_a_chunk_has_no_token() -> None:
    """Also where the last token ended a chunk."""
    run = update("titans_linear", "chunked")
    member = BY_NAME["titans_linear"]
    case, fresh = row(situations(member, tokens=8), 0), row(situations(member, seed=1), 0).state
    rows = np.arange(8)
    for valid in (rows < 4, rows < 0):
        _, want, _ = jax.device_get(run(*case, valid=valid))
        _, state, _ = jax.device_get(run(*case, valid=valid, reset=Reset(rows == 4, fresh)))
        same(state, want)


def on_origin(state: State, origin: Any) -> State:
    """A state with the same weights, whose dual is relative to another origin."""
    if origin is None:
        return state
    return state._replace(dual=jax.tree.map(np.subtract, absolute(state), origin), origin=origin)


@pytest.mark.parametrize("name", [pytest.param("titans", marks=pytest.mark.slow), "gated_deltanet"])
@pytest.mark.parametrize("aligned", [pytest.param(False, marks=pytest.mark.slow), True], ids=["anywhere", "valid"])
def test_many_chunks_go_by_groups(name: str, aligned: bool) -> None:
    """Whole groups of chunks, and some that remain: values and gradients as token by token."""
    length, chunk, rule = 2 * (3 * GROUP + 2), 2, BY_NAME[name].rule
    _, q, k, v, gates = row(situations(BY_NAME[name], tokens=length), 0)
    gates = gates._replace(rate=1e-4 * gates.rate)  # of large steps rounding grows over so many chunks
    weights = rule.architecture.init(jax.random.key(0))
    valid = {"valid": np.ones(length, bool)} if aligned else {}

    def results(implementation: str | None) -> Any:
        memory = miras(rule, chunk=chunk, implementation=implementation)

        def loss(*inputs: Any) -> tuple[Any, Any]:
            weights, *tokens, step = inputs
            state = memory.init(weights)._replace(step=step)
            y, state, info = memory.update(state, *tokens, **valid)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), (y, state, info.surprise)

        run = jax.jit(jax.grad(loss, argnums=range(5), has_aux=True), compiler_options=QUICK)
        return jax.device_get(run(weights, q, k, v, gates, np.int32(0)))

    close(results(None), results("recurrent"), 1e-9)


FRESH = [
    pytest.param(*pair, id="-".join(pair), marks=() if fast else pytest.mark.slow)
    for pair, fast in {
        ("titans", "chunked"): True,
        ("titans-channel", "recurrent"): False,
        ("gated_deltanet-channel", "exact"): True,
        ("titans_to_origin", "chunked"): False,
        ("atlas", "chunked"): False,
        ("dgd_linear", "delta"): True,
    }.items()
]


def from_init(name: str, implementation: str, lengths: tuple[int, ...], traced: bool) -> Any:
    """Calls of these lengths one after the other from `memory.init`, whose step is a constant or is not."""
    rule = BY_NAME[name].rule
    memory = miras(rule, chunk=CHUNK, implementation=implementation)

    def loss(weights: Any, tokens: Any, step: Any) -> Any:
        state, ys, at = memory.init(weights), [], 0
        state = state._replace(step=step) if traced else state
        for length in lengths:
            piece = jax.tree.map(lambda x, at=at, n=length: x[at : at + n], tokens)
            y, state, info = memory.update(state, *piece)
            ys.append(y)
            at += length
        y = jnp.concatenate(ys)
        objective = (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()
        objective += sum((x * fixed_weights(x, 1)).sum() for x in jax.tree.leaves(state._replace(step=None)))
        return objective, (y, state, info)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)


@pytest.mark.parametrize("name, implementation", FRESH)
def test_a_fresh_state_needs_no_alignment(name: str, implementation: str) -> None:
    """Its step is known while tracing: values and gradients are those of a traced step, without a branch a chunk."""
    member = BY_NAME[name]
    tokens = 2 * CHUNK + 2
    arguments = (member.rule.architecture.init(jax.random.key(0)), tuple(row(situations(member, tokens=tokens), 0))[1:])
    arguments = jax.device_get((*arguments, np.int32(0)))
    runs = (from_init(name, implementation, (tokens,), traced) for traced in (False, True))
    known, traced = (jax.jit(run).trace(*arguments) for run in runs)
    got, want = (jax.device_get(t.lower().compile(QUICK)(*arguments)) for t in (known, traced))
    close(got, want, 1e-12)
    assert got[1][1].step == tokens

    def branches(run: Any) -> int:
        return sum(e.primitive.name == "cond" for e in equations(run.jaxpr.jaxpr))

    if implementation != "recurrent":  # which ends a chunk after any token
        assert branches(known) == 0 and branches(traced) > 0


def test_a_second_call_from_a_fresh_state_starts_where_the_first_stopped() -> None:
    """5 tokens of a chunk of 4 leave a step that is traced: the calls are those of one."""
    member = BY_NAME["titans_linear"]
    arguments = (member.rule.architecture.init(jax.random.key(0)), tuple(row(situations(member), 0))[1:], np.int32(0))
    arguments = jax.device_get(arguments)
    runs = (from_init("titans_linear", "chunked", lengths, False) for lengths in ((5, 1, 8), (14,)))
    got, want = (jax.device_get(jax.jit(run, compiler_options=QUICK)(*arguments)) for run in runs)
    close((got[0], got[1][:2]), (want[0], want[1][:2]), 1e-9)


def residual_run(name: str, implementation: str) -> Any:
    memory = miras(BY_NAME[name].rule, chunk=CHUNK, implementation=implementation)

    def objective(floats: tuple[Case, Any], step: Any, aligned: bool) -> Any:
        case, residual = floats
        rows = jnp.arange(12) - step % CHUNK
        valid = (rows >= 0) & (rows < 9) if aligned else None
        q, k, v, gates = case[1:]
        state = case.state._replace(step=step)
        y, state, info = memory.update(state, q, k, v, gates, valid=valid, residual=residual)
        y = jax.lax.dynamic_slice_in_dim(y, step % CHUNK, 9) if aligned else y
        return (y**2).sum(), (y, state, info.anchors)

    return jax.jit(jax.grad(objective, has_aux=True), static_argnums=2, compiler_options=QUICK)


@pytest.mark.parametrize("name, aligned", [("titans_linear", False), ("titans", True)], ids=["anywhere", "valid"])
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


def largest_of(
    name: str, channel: bool, implementation: str, length: int, dim: int, chunk: int, fresh: bool = True
) -> tuple[int, int]:
    """The largest array of the update's forward and backward pass, and the size of the smallest weight matrix."""
    preset = PRESETS[name]
    # of degree 1, so that all weights are of a size, and so the states of all chunks are below T |W|
    rule = preset(dim, **{"degree": 1} if "degree" in inspect.signature(preset).parameters else {})
    memory = miras(rule, chunk=chunk, implementation=implementation)

    def objective(weights: Any, q: Any, k: Any, v: Any, gates: Gates, step: Any) -> Any:
        state = memory.init(weights)
        y, state, info = memory.update(state if fresh else state._replace(step=step), q, k, v, gates)
        return (y**2).sum() + info.surprise.sum() + sum((x**2).sum() for x in jax.tree.leaves(state.dual))

    weights = jax.eval_shape(rule.architecture.init, jax.random.key(0))
    rows, scalar = jax.ShapeDtypeStruct((length, dim), "float32"), jax.ShapeDtypeStruct((length,), "float32")
    gates, written = Gates(scalar, scalar, rows if channel else scalar), rows
    if (m := rule.learner.writes_per_token) > 1:
        gates = gates._replace(rate=jax.ShapeDtypeStruct((length, m), "float32"))
        written = jax.ShapeDtypeStruct((length, m, dim), "float32")
    arguments = (weights, rows, written, written, gates, jax.ShapeDtypeStruct((), "int32"))
    jaxpr = jax.make_jaxpr(jax.value_and_grad(objective, argnums=(0, 1, 2, 3, 4)))(*arguments)
    return largest(jaxpr.jaxpr), min(w.size for n, w in weights.items() if w.shape[0] > 1)


FAST = ("titans", "gated_deltanet-channel", "ttt_linear", "swla", "dgd_linear")  # each engine, averages, windows
MATMULS = [
    pytest.param(m.row, m.channel, i, id=f"{m.name}-{i}", marks=() if m.name in FAST else pytest.mark.slow)
    for m in MEMBERS
    for i in m.implementations
    if m.preset and m.row not in SAME and i != "recurrent"
]


@pytest.mark.parametrize("name, channel, implementation", MATMULS)
def test_no_array_of_tokens_times_weights(name: str, channel: bool, implementation: str) -> None:
    """Forward and backward of many chunks: nothing reaches T |W| elements, |W| the smallest weight matrix."""
    for fresh in (True, False):
        found, weight = largest_of(name, channel, implementation, length=256, dim=32, chunk=4, fresh=fresh)
        assert found < 256 * weight


def test_the_search_for_tokens_times_weights_finds_them_where_they_are() -> None:
    found, weight = largest_of("titans", False, "recurrent", length=256, dim=32, chunk=256)
    assert found >= 256 * weight, "recurrent keeps the weights of a chunk's tokens for its backward pass"


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
