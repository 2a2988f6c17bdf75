"""What ends a run early: numbers that are not finite, a signal, too little memory."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax

from titans_jax.waiting import ends_at_once, ends_by_itself, handled_by


class Diverged(Exception):
    """The loss or its gradient is not finite; the message says where."""


class NotFinite(Exception):
    """The message says what is not finite after step `step`."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Stopped(Exception):
    """A signal ended the run; everything needed to resume is saved."""

    code = 75
    """The exit code."""


class Lost(Exception):
    """Another process of the run has ended; its newest checkpoint is what it continues from."""


@contextlib.contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that a signal of STOPPING sets; a second one interrupts. In a thread, signals stay as they are."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with handled_by(handle), ends_by_itself():
        yield stop


@contextlib.contextmanager
def stopping(message: str = "stopped; the same command continues") -> Iterator[None]:
    """Turn a signal of STOPPING into Stopped(message), at once, and where the shell has SIGINT ignored (`&`) too."""
    try:
        with handled_by(signal.default_int_handler), ends_at_once(message, Stopped.code):
            yield
    except KeyboardInterrupt:
        raise Stopped(message) from None


@contextlib.contextmanager
def memory_advice() -> Iterator[None]:
    """Turn a device's out-of-memory error into a MemoryError that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            "out of device memory; raise --optim.accumulation (more parts of a batch) or lower --data.batch, "
            "shorten --data.sequence, or set --model.remat, --model.dtype bfloat16 or more devices on --mesh fsdp="
        ) from error
