"""Several processes that train one model: how they find each other, stop together, and end."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from titans_jax import files, metrics
from titans_jax.training.errors import Lost
from titans_jax.waiting import end_now

START, HEARTBEAT = 300, 10
"""Seconds to wait for the other processes to start, and for a sign of life."""


def start(distributed: str, *, prog: str) -> None:
    """Join the other processes of a run, where there are any. To be called before any computation.

    distributed: HOST:PORT,PROCESSES,INDEX, where process 0 listens at HOST:PORT; "" to take what a cluster says.
    Raises ValueError for another text, or a cluster that does not say enough; ends the process, with code 2, where the
    others do not answer.
    """
    platforms = getattr(jax.config, "jax_platforms", None)  # "tpu,cpu" where jax has found TPUs
    if not distributed and not has_others(os.environ, platforms or ""):
        return
    arguments = _parse(distributed) if distributed else {}
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    where = f"at {arguments['coordinator_address']} " if arguments else ""
    line = f"{prog}: not all processes of the run could be reached {where}in {START} s; start all of them together"
    late = threading.Timer(START, _end, (line, 2))  # jax itself would abort, with a C++ stack
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=2 * START,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except RuntimeError as error:
        raise ValueError(f"{error}; give --distributed HOST:PORT,PROCESSES,INDEX") from None
    finally:
        late.cancel()
    sys.excepthook = _crash


def has_others(environment: Mapping[str, str], platforms: str) -> bool:
    """Whether SLURM, Open MPI or a TPU pod started this process as one of several; jax itself finds the others.

    A TPU VM with a single host may count as one of several, which changes nothing.
    """
    for count in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(environment.get(count, 1)) > 1:
            return True
    if "tpu" not in platforms:
        return False
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = int(environment.get("MEGASCALE_NUM_SLICES", 1))
    return slices > 1 or ("," in hosts if hosts else "TPU_SKIP_MDS_QUERY" not in environment)


def _parse(distributed: str) -> dict[str, Any]:
    address, *numbers = distributed.split(",")
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and len(numbers) == 2 and all(number.isdigit() for number in numbers):
        count, index = map(int, numbers)
        if index < count:
            return {
                "coordinator_address": address,
                "num_processes": count,
                "process_id": index,
                "cluster_detection_method": "deactivate",
            }
    raise ValueError(
        f"--distributed {distributed!r} is not HOST:PORT,PROCESSES,INDEX, such as 10.0.0.1:8476,4,0 for the first of 4"
    )


class Agreed:
    """An event that is set in all processes at once, when it is set in one.

    `is_set` is to be called at the same steps in all of them. Its answer is that of the call before, so that no device
    waits for it.
    """

    def __init__(self, event: threading.Event, mesh: Mesh) -> None:
        """mesh: of all devices; it is to be active."""
        self._event, self._any = event, jax.jit(jnp.any)
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._answer: Any = False

    def is_set(self) -> bool:
        """Whether the event was set in a process at the call before this one."""
        own = np.array([self._event.is_set()])
        asked = jax.make_array_from_callback((jax.device_count(),), self._sharding, lambda _: own)
        answer, self._answer = self._answer, self._any(asked)
        return bool(answer)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """As `files.locked`; of several processes, the main one holds the lock for all, and all raise its error."""
    with contextlib.ExitStack() as stack:
        refused = None
        try:
            if metrics.is_main():
                stack.enter_context(files.locked(folder))
        except ValueError as error:
            refused = error
        several = jax.process_count() > 1
        if several and multihost_utils.broadcast_one_to_all(np.array(refused is not None)) and refused is None:
            refused = ValueError(f"{folder} is in use by another run")
        if refused is not None:
            raise refused
        yield


def remove(folder: Path) -> None:
    """Remove a folder that all processes share, before any of them looks into it."""
    if metrics.is_main():
        files.remove(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("removed")


@contextlib.contextmanager
def reports_lost() -> Iterator[None]:
    """Turn the error of a computation with others, when one of them has died, into Lost."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # XLA raises one or the other, which begin with a status
        reason = str(error).partition("\n")[0]
        if not (jax.distributed.is_initialized() and re.match("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED): ", reason)):
            raise
        raise Lost(f"another process of the run has ended: {reason}; start all again to continue") from error


def leave(code: int) -> int:
    """The exit code, where all processes end alike; else this process ends here, and does not wait for the others."""
    if not jax.distributed.is_initialized():
        return code
    if code in (0, 4, 75):
        jax.distributed.shutdown()  # waits for the others: the end of one aborts those that are not as far
        return code
    if jax.process_index() == 0:
        time.sleep(3)  # its end aborts the others: time for them to find the same error
    _end("", code)


def _crash(*error: Any) -> None:
    """What a process of several does for an error that nobody expects: it ends at once, so that the others notice."""
    sys.__excepthook__(*error)
    _end("", 1)


def _end(line: str, code: int) -> NoReturn:
    if line:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    end_now(code)
