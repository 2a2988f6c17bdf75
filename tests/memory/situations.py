"""The data on which the laws are tried, and the compiled programs that they share.

Six rows at once by vmap, each in another situation. Compiling is what these tests spend their time on: one program a
member and implementation serves nearly every law, compiled without optimisation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.compiling import QUICK
from titans_jax.memory import IMPLEMENTATIONS, PRESETS, Gates, Rule, State, miras
from titans_jax.memory.types import Window

DIM, CHUNK, TOKENS, ROWS = 4, 4, 14, 6


class Member:
    """A rule; whether its keep gate is per channel, and its shared program has gradients (dear, so not for all)."""

    def __init__(self, name: str, rule: Rule, channel: bool = False, gradients: bool = True):
        self.row, self.name, self.rule, self.channel = name, name + "-channel" * channel, rule, channel
        self.preset, self.gradients = name in PRESETS, gradients
        self.implementations = [i for i in IMPLEMENTATIONS if serves(rule, i)]


def serves(rule: Rule, implementation: str) -> bool:
    try:
        miras(rule, chunk=CHUNK, implementation=implementation)
    except NotImplementedError:
        return False
    return True


def with_writes(rule: Rule, x: np.ndarray) -> np.ndarray:
    """Keys, values or rates [..., T, .] as the rule takes them: where it writes m times a token, m different ones."""
    if rule.learner.writes_per_token == 1:
        return x
    return np.stack([np.roll(x, 3 * i, axis=1) for i in range(rule.learner.writes_per_token)], axis=2)


class Case(NamedTuple):
    """The arguments of `update`, each with a first axis of rows; numpy, since eager jax compiles every slice."""

    state: State
    q: Any
    k: Any
    v: Any
    gates: Gates


def situations(member: Member, tokens: int = TOKENS, chunk: int = CHUNK, dtype: str = "float64", seed: int = 0) -> Case:
    """Six rows: ordinary; gates exactly 0 or 1; all 1; all 0; rates at which the clip binds; started inside a chunk."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, tokens, DIM) if member.channel else (ROWS, tokens)
    rate, momentum = rng.uniform(0, 0.3, (ROWS, tokens)), rng.uniform(0, 0.95, (ROWS, tokens))
    keep = rng.uniform(0.8, 1.0, shape)
    rate[1], momentum[1], keep[1] = (rng.integers(0, 2, x.shape[1:]) for x in (rate, momentum, keep))
    momentum[2], keep[2] = 1, 1
    rate[3], momentum[3], keep[3] = rng.integers(0, 2, tokens), 0, 0
    rate[4] *= 20
    q, k, v = rng.normal(size=(3, ROWS, tokens, DIM))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    offset = np.array([0, 0, 0, chunk // 2, chunk - 1, chunk + chunk // 2])

    def noise(scale: float) -> dict[str, np.ndarray]:
        return {n: scale * rng.normal(size=(ROWS, *w.shape)) for n, w in sorted(weights.items())}

    weights = member.rule.architecture.init(jax.random.key(seed))
    dual = jax.tree.map(np.add, weights, noise(0.3))
    inside = (offset % chunk != 0)[:, None, None]
    anchor = jax.tree.map(lambda w, n: w + n * inside, dual, noise(0.1))
    traces = tuple(noise(0.2) for _ in range(member.rule.learner.traces))
    origin = noise(1.0) if member.rule.retention.to_origin else None
    weights = noise(1.0) if member.rule.retention.carries_weights else None
    threshold = rng.uniform(1, 4, (ROWS, tokens)) if member.rule.bias.threshold else None
    window, weight = None, None
    if (c := member.rule.learner.window) > 1:
        window = Window(*rng.normal(size=(2, ROWS, c - 1, DIM)), rng.uniform(0, 1, (ROWS, c - 1, 1)))
        weight = rng.uniform(0, 1, (ROWS, tokens))
    if member.rule.architecture.write is not None:  # a sum of squares
        dual, anchor = (w | {"h": np.swapaxes(w["h"], 1, 2) @ w["h"]} for w in (dual, anchor))
    if member.rule.learner.inputs is not None:
        v[4] *= 5  # so that the clip binds also where the rate is not read
    k, v, rate = (with_writes(member.rule, x) for x in (k, v, rate))
    if origin is not None:
        dual = jax.tree.map(np.subtract, dual, origin)
    state = State(dual, traces, anchor, None, origin, weights, window)
    case = Case(state, q, k, v, Gates(rate, momentum, keep, threshold, weight))
    case = jax.tree.map(lambda x: np.asarray(x, dtype), case)
    return case._replace(state=case.state._replace(step=np.asarray(offset, "int32")))


@functools.cache
def rowwise(
    member: Member, implementation: str, chunk: int, gradients: bool, read_at: str = "after"
) -> Callable[[Case], Any]:
    """`update` on all rows, compiled: case -> y, state, info, and the gradients of every float argument, or None."""
    memory = miras(member.rule, chunk=chunk, implementation=implementation, read_at=read_at)

    def objective(floats: Case, step: Any) -> Any:
        out = memory.update(*floats._replace(state=floats.state._replace(step=step)))
        y, state, info = out
        looked_at = jax.tree.leaves((y, state._replace(step=None), info.surprise))
        return sum((x * fixed_weights(x, i)).sum() for i, x in enumerate(looked_at)), out

    def run(case: Case) -> Any:
        floats, step = case._replace(state=case.state._replace(step=None)), case.state.step
        if not gradients:
            return *objective(floats, step)[1], None
        grads, out = jax.grad(objective, has_aux=True)(floats, step)
        return *out, grads

    return jax.jit(jax.vmap(run), compiler_options=QUICK)


def fixed_weights(x: Any, seed: int) -> np.ndarray:
    """Fixed weights of an objective, all different, so that no error cancels."""
    return np.random.default_rng(seed).normal(size=x.shape).astype(x.dtype)


@functools.cache
def single(member: Member, implementation: str, *, chunk: int = CHUNK) -> Callable[..., Any]:
    """`update` on one row, compiled again for each length."""
    return jax.jit(miras(member.rule, chunk=chunk, implementation=implementation).update, compiler_options=QUICK)


def absolute(state: State) -> Any:
    """origin + dual: what the oracles call the weights."""
    return state.dual if state.origin is None else jax.tree.map(np.add, state.origin, state.dual)


def row(tree: Any, r: int) -> Any:
    return jax.tree.map(lambda x: x[r], tree)


def results(member: Member, implementation: str, case: Case) -> tuple[Any, State, Any, Any]:
    """y, state, info, and gradients or None, by the program that most laws share."""
    return jax.device_get(rowwise(member, implementation, CHUNK, member.gradients)(case))


def pieced(member: Member, implementation: str, stepwise: str, case: Case, lengths: Any) -> tuple[np.ndarray, State]:
    """Read a row in pieces of these lengths, the state carried; single tokens by `stepwise`."""
    state, ys, at = case.state, [], 0
    for length in map(int, lengths):
        xs = jax.tree.map(lambda x, at=at, n=length: x[at : at + n], tuple(case)[1:])
        y, state, _ = single(member, stepwise if length == 1 else implementation)(state, *xs)
        ys.append(y)
        at += length
    return np.concatenate(ys), state


def changed(case: Case, where: Any) -> Case:
    """Another token wherever the index says: its q, k, v and gates."""

    def change(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[where] = x[where] / 2 + 0.25
        return x

    return Case(case.state, *jax.tree.map(change, tuple(case)[1:]))


def at_chunk_ends(info: Any, step: Any, chunk: int) -> Any:
    """Info where all implementations mean the same by it: norms and cuts at a chunk's or the call's last token."""
    tokens = info.surprise.shape[-1]
    ends = (step[:, None] + 1 + np.arange(tokens)) % chunk == 0
    ends[:, -1] = True
    held = {n: np.where(ends, getattr(info, n), 0) for n in ("momentum_norm", "weight_norm", "clipped")}
    return info._replace(**held)
