"""`titans-jax launch`: a training in several processes on the CPUs of this machine, as several hosts would run it."""

import argparse
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from titans_jax.cli.options import positive
from titans_jax.waiting import ends_by_itself, handled_by

PROGRAM = (sys.executable, "-m", "titans_jax")
PATIENCE = 20
"""Seconds that the other processes have to end by themselves, after one has failed."""

Child = subprocess.Popen[bytes]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--processes", type=positive, default=2, help="processes to start (default %(default)s)")
    parser.add_argument("--devices", type=positive, default=1, help="CPU devices of each one (default %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- train ...", help="the run of all processes")


def run(options: argparse.Namespace) -> None:
    """Train in several processes on the CPUs of this machine; ends with the exit code of the run."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if command[:1] != ["train"]:
        raise ValueError("launch starts trainings: titans-jax launch --processes 2 --devices 4 -- train NAME")
    with contextlib.ExitStack() as stack:
        errors: list[IO[bytes]] = []
        children: list[Child] = []
        stack.callback(_kill, children)
        stack.enter_context(ends_by_itself())  # the processes save, which takes longer than a second
        stack.enter_context(handled_by(lambda *_: _stop(children)))
        address = f"127.0.0.1:{_free_port()}"
        for index in range(options.processes):
            arguments = [*command, "--distributed", f"{address},{options.processes},{index}"]
            errors.append(stack.enter_context(tempfile.TemporaryFile("w+b")))
            streams = {"stdout": subprocess.DEVNULL, "stderr": errors[-1]} if index else {}
            children.append(_start(arguments, options.devices, streams))
        failed = _wait(children)
        if failed is None:
            return
        code = children[failed].returncode
        if code != children[0].returncode:  # else process 0 has printed the same
            errors[failed].seek(0)
            for line in errors[failed].read().decode(errors="replace").splitlines():
                print(f"process {failed}: {line}", file=sys.stderr)
        if code < 0:
            print(f"titans-jax: process {failed} was ended by {signal.Signals(-code).name}", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def _start(arguments: Sequence[str], devices: int, streams: dict[str, Any]) -> Child:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    # Collectives of all devices wait in one pool of NPROC threads: with one for each core they may deadlock.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": str(4 * devices)}
    # In a session of its own it gets no Ctrl-C from the terminal, besides the signal that is forwarded.
    return subprocess.Popen([*PROGRAM, *arguments], env=environment, start_new_session=True, **streams)


def _wait(children: Sequence[Child]) -> int | None:
    """Wait until all have ended; which one failed first, or None. The others are killed PATIENCE seconds after it.

    Code 76 is of one that another has failed.
    """
    failed, deadline = None, math.inf
    while True:
        codes = [child.poll() for child in children]
        if failed is None and any(codes):
            _, failed = min((code == 76, i) for i, code in enumerate(codes) if code)
            deadline = time.monotonic() + PATIENCE
        if None not in codes:
            return failed
        if time.monotonic() > deadline:
            _kill(children)
        time.sleep(0.1)


def _stop(children: Sequence[Child]) -> None:
    for child in children:
        child.terminate()


def _kill(children: Sequence[Child]) -> None:
    for child in children:
        child.kill()
        child.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
