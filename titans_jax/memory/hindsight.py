"""A scan whose backward pass, when it runs a step again, knows where the step ended."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# (state, x, after) -> new state, y, told; after is None, or the new state and what was told when the step was first run
Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


def scan(step: Step, state: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan` of step(state, x, after), of which only the states between steps and what each step told are kept.

    In the backward pass a step runs again, given where it ended. What its gradients ask of the new state it then need
    not make: a memory after a chunk is a sum of products, and the gradient of its clip would need it a second time.
    Reverse mode of any order, and forward mode over it, but not forward mode alone. Returns the last state and every y.
    """
    first = jax.tree.map(lambda x: x[0], xs)
    forth, forth_sees = jax.closure_convert(lambda state, x: step(state, x, None), state, first)
    new, _, told = jax.eval_shape(forth, state, first, *forth_sees)
    again, again_sees = jax.closure_convert(lambda *given: step(*given)[:2], state, first, (new, told))

    @jax.custom_vjp
    def run(forth_sees: Any, again_sees: Any, state: Any, xs: Any) -> Any:
        return lax.scan(lambda state, x: forth(state, x, *forth_sees)[:2], state, xs)

    def keep(forth_sees: Any, again_sees: Any, state: Any, xs: Any) -> Any:
        def one(state: Any, x: Any) -> Any:
            new, y, told = forth(state, x, *forth_sees)
            return new, (y, state, told)

        last, (ys, before, told) = lax.scan(one, state, xs)
        return (last, ys), (again_sees, before, told, last, xs)

    def back(kept: Any, cotangents: Any) -> Any:
        again_sees, before, told, last, xs = kept
        to_last, to_ys = ([x for x in jax.tree.leaves(to) if x.dtype != jax.dtypes.float0] for to in cotangents)

        def one(carry: Any, given: Any) -> Any:
            (new, to_new, to_sees), (before, told, x, to_y) = carry, given
            floats, joined = _floats((before, x))

            def outputs(floats: list[Array], sees: Any) -> list[Array]:
                return _floats(again(*joined(floats), (new, told), *sees))[0]

            to_floats, more = jax.vjp(outputs, floats, again_sees)[1](to_new + to_y)
            to_sees = jax.tree.map(jnp.add, to_sees, more)
            return (before, to_floats[: len(to_new)], to_sees), to_floats[len(to_new) :]

        start = (last, to_last, jax.tree.map(jnp.zeros_like, again_sees))
        (_, to_state, to_sees), to_xs = lax.scan(one, start, (before, told, xs, to_ys), reverse=True)
        nothing = itertools.repeat(None)
        return None, to_sees, _floats(state)[1](to_state, nothing), _floats(xs)[1](to_xs, nothing)

    run.defvjp(keep, back)
    last, ys = run(forth_sees, again_sees, state, xs)
    return last, ys


def _floats(tree: Any) -> tuple[list[Array], Callable[..., Any]]:
    """A tree's leaves that have gradients, and joined(those, rest of leaves) -> the tree of them; rest: its own."""
    leaves, structure = jax.tree.flatten(tree)
    inexact = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def joined(floats: list[Array], rest: Iterable[Any] = leaves) -> Any:
        left = iter(floats)
        whole = [next(left) if real else x for real, x in zip(inexact, rest, strict=False)]
        return jax.tree.unflatten(structure, whole)

    return [x for x, real in zip(leaves, inexact, strict=True) if real], joined
