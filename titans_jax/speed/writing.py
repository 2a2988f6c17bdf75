"""The next token: what it costs after a context of any length, and of many sequences at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from titans_jax.decode import Sampling, stream
from titans_jax.nn.model import LM, LMState
from titans_jax.speed import models, rounds
from titans_jax.speed.clock import Timer, timer
from titans_jax.speed.rounds import Subject, done
from titans_jax.speed.table import Report
from titans_jax.training.bench import Rows

CONTEXTS = (256, 4096, 65536, 1048576)
SEQUENCES = (1, 8, 64)
WRITTEN = 64
"""Tokens of a call, one chunk of the memory, so that what a chunk's end costs counts in every call."""


class Later(LM):
    """A model whose streams begin at a later token: every counter of the state stands there, the rest as at the start.

    What a stream carries has one size and shape for ever, so a token's cost after N tokens is that of this state, but
    for what the numbers themselves might do to the time.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.context = nnx.Variable(jnp.zeros((), jnp.int32))

    def init_state(self, batch: int) -> LMState:
        """As after `context` tokens."""

        def moved(path: Any, x: Any) -> Any:
            return x + self.context[...] if jax.tree_util.keystr(path[-1:]) in (".step", ".age") else x

        state: LMState = jax.tree_util.tree_map_with_path(moved, super().init_state(batch))
        return state


def writer(block: str, context: int, *, sequences: int = 1, read: bool = False) -> Callable[[], Any]:
    """WRITTEN more tokens of each of so many sequences at every call, greedily, as `generate` goes on.

    read: whether the context is really read, random tokens of it; if not, the state is that of `Later`.
    """
    model = Later(models.model_of(block), rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 256, (sequences, context if read else 1), np.int32)
    if not read:
        model.context[...] = jnp.int32(context - 1)
    following = stream(model, tokens, Sampling(temperature=0))
    return lambda: [next(following) for _ in range(WRITTEN)]


def tokens(block: str, context: int, read: bool = False) -> Timer:
    """WRITTEN tokens of one sequence after a context."""
    return timer(done(writer(block, context, read=read)))


def by_context(contexts: Sequence[int], read: bool, count: int, rows: Rows) -> Report:
    """One sequence of models.MAC after each context, and how its cost compares with that after the shortest."""

    def subject(context: int) -> Subject:
        return Subject(lambda: tokens(models.MAC, context, read), WRITTEN, {"pass": "decode", "context": context})

    every = {f"after {context:,}": subject(context) for context in contexts}
    measured = rounds.run(every, count, rows, what="bench decode")
    first, *others = every
    how = "was read" if read else "was not read: the state's counters stand there, its memory is as at the start"
    report = Report(measured.found(), measured.ratios({f"{name} over {first}": (name, first) for name in others}))
    return report._replace(notes=(f"The context {how}.",))


def at_once(sequences: Sequence[int], count: int, rows: Rows) -> Report:
    """So many sequences of models.MAC at once, and how many times the tokens a second of the fewest they give."""

    def subject(number: int) -> Subject:
        make = lambda: timer(done(writer(models.MAC, 64, sequences=number)))  # noqa: E731
        return Subject(make, number * WRITTEN, {"pass": "decode", "sequences": number})

    every = {f"{number} at once": subject(number) for number in sequences}
    measured = rounds.run(every, count, rows, what="bench streams")
    first, *others = every
    return Report(measured.found(), measured.ratios({f"{first} over {name}": (first, name) for name in others}))
