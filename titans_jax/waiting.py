"""What a user sees of a program that is busy: a line while it waits, and one line where an interrupt ends it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 1.0
"""Seconds between an interrupt and the end of a process that does not end by itself."""
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""The signals that end a run."""
PAUSES = {True: (0.3, 1.0), False: (2.0, 10.0)}
"""Seconds before the first line of a wait and between its lines, on a terminal and elsewhere."""


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show `what` and the seconds on stderr while the block runs. The block prints nothing.

    On a terminal, the line disappears at the end. Elsewhere, it is a line after two seconds and then every ten.
    """
    stream, done, start = sys.stderr, threading.Event(), time.monotonic()
    live = stream.isatty()

    def show() -> None:
        first, pause = PAUSES[live]
        waited = done.wait(first)
        while not waited:
            line = f"{what} [{time.monotonic() - start:.0f} s]"
            stream.write(f"\r{line}" if live else f"{line}\n")
            stream.flush()
            waited = done.wait(pause)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if live:
            stream.write("\r\x1b[K")
            stream.flush()


def end_now(code: int) -> NoReturn:
    """End the process and its workers without waiting for what runs on the device."""
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(code)


@contextlib.contextmanager
def ends_at_once(message: str, code: int) -> Iterator[None]:
    """Print `message` and end the process where the block still runs a second after a signal of STOPPING.

    Python handles a signal between two of its own instructions, so not inside a compilation, and jax drops exceptions
    that a handler raises in its callbacks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    done = threading.Event()

    def watch() -> None:
        while number := os.read(read, 1):
            if number[0] in STOPPING and not done.wait(PATIENCE):
                os.write(2, f"\n{message}\n".encode(errors="replace"))
                end_now(code)
        os.close(read)

    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        os.close(write)


@contextlib.contextmanager
def ends_by_itself() -> Iterator[None]:
    """Take back `ends_at_once` inside the block, which saves before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


@contextlib.contextmanager
def handled_by(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals of STOPPING inside the block; in a thread, they stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup has SIGHUP ignored, so that the run outlives its terminal.
    numbers = [number for number in STOPPING if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
