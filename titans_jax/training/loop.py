"""The training loop: every training in this library, long or short, is a call of `train`."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

State = TypeVar("State")
Batch = TypeVar("Batch")
Metrics = TypeVar("Metrics")


class Event(Protocol):
    """What may be set to end a training, such as a threading.Event."""

    def is_set(self) -> bool:
        """Whether it is set."""


def train(
    step: Callable[[State, Batch], tuple[State, Metrics]],
    state: State,
    batches: Iterable[Batch],
    *,
    start: int = 0,
    record: Callable[[int, Metrics], None],
    due: Callable[[int], bool],
    pause: Callable[[int, State, bool], None],
    stop: Event | None = None,
) -> State:
    """Take a step for every batch; returns the state after the last one.

    Args:
        step: (state, batch) -> state, metrics. It may return before the device has computed them.
        batches: one for each step that is left; the loop ends with them.
        start: steps that were taken before; the first step here is start + 1.
        record: called with the number and the metrics of every step, in order. The device works on the next step
            meanwhile, so a call belongs to the step before the newest one.
        due: whether `pause` is called after step n.
        pause: called with the number, the state and whether the run should end, after `record` of the same step: it
            evaluates and saves. It ends the run by an exception.
        stop: asked after every step; once it is set, `pause` is called after the step in progress, with True.
    """
    pending: tuple[int, Metrics] | None = None
    for n, batch in enumerate(batches, start + 1):
        state, metrics = step(state, batch)
        if pending is not None:
            record(*pending)
        pending = n, metrics
        stopping = stop is not None and stop.is_set()
        if stopping or due(n):
            record(*pending)
            pending = None
            pause(n, state, stopping)
    if pending is not None:
        record(*pending)
    return state
