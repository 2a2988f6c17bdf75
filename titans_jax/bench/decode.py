"""`bench decode`, `bench streams`: the cost of the next token after a context, and of many sequences at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax.bench import interleave, steps
from titans_jax.bench.clock import Timer
from titans_jax.bench.interleave import Subject, device_timer
from titans_jax.bench.report import Report, Rows
from titans_jax.decode import Sampling, stream
from titans_jax.nn.model import LM, LMState

CONTEXTS = (256, 4096, 65536, 1048576)
SEQUENCES = (1, 8, 64)
WRITTEN = 64
"""Tokens of a call: one chunk of the memory, so that the cost of a chunk's end counts in every call."""


class Later(LM):
    """A model whose state begins with every counter at `context`, and is otherwise as at the start.

    A state has one size and shape at any length, so the cost of a token after N tokens is that of this state.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.context = nnx.Variable(jnp.zeros((), jnp.int32))

    def init_state(self, batch: int) -> LMState:
        """As after `context` tokens."""

        def later(path: Any, x: Any) -> Any:
            return x + self.context[...] if jax.tree_util.keystr(path[-1:]) in (".step", ".age") else x

        state: LMState = jax.tree_util.tree_map_with_path(later, super().init_state(batch))
        return state


def writer(block: str, context: int, *, sequences: int = 1, read: bool = False) -> Callable[[], Any]:
    """Each call writes WRITTEN more tokens of each sequence, greedily, as `generate` does.

    read: read random tokens as the context; otherwise the state is that of `Later`.
    """
    model = Later(steps.model_of(block), rngs=nnx.Rngs(0))
    prompt = np.random.default_rng(0).integers(0, 256, (sequences, context if read else 1), np.int32)
    if not read:
        model.context[...] = jnp.int32(context - 1)
    following = stream(model, prompt, Sampling(temperature=0))
    return lambda: [next(following) for _ in range(WRITTEN)]


def tokens(block: str, context: int, **options: Any) -> Timer:
    """A timer of `writer`."""
    return device_timer(writer(block, context, **options))


def by_context(contexts: Sequence[int], read: bool, count: int, rows: Rows) -> Report:
    """One sequence of steps.MAC after each context; the ratios are to the shortest."""

    def subject(context: int) -> Subject:
        facts = {"pass": "decode", "context": context}
        return Subject(lambda: tokens(steps.MAC, context, read=read), WRITTEN, facts)

    every = {f"after {context:,}": subject(context) for context in contexts}
    first, *others = every
    pairs = {f"{name} over {first}": (name, first) for name in others}
    how = "was read" if read else "was not read: the state's counters stand there, its memory is as at the start"
    return interleave.run(every, count, rows, what="bench decode", pairs=pairs, notes=(f"The context {how}.",))


def at_once(sequences: Sequence[int], count: int, rows: Rows) -> Report:
    """Several sequences of steps.MAC at once; the ratios are tokens a second over those of the fewest."""

    def subject(number: int) -> Subject:
        facts = {"pass": "decode", "sequences": number}
        return Subject(lambda: tokens(steps.MAC, 64, sequences=number), number * WRITTEN, facts)

    every = {f"{number} at once": subject(number) for number in sequences}
    first, *others = every
    pairs = {f"{first} over {name}": (first, name) for name in others}
    return interleave.run(every, count, rows, what="bench streams", pairs=pairs)
