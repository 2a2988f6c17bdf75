"""Cycles of a program as the TPU's compiler estimates them, without a TPU.

libtpu (the extra tpu) compiles for a chip that is not here. Its estimates rank programs but do not time them: nothing
overlaps in them, and they are pessimistic where memory is the bound.
"""

import importlib.util
import math
import os
import re
from typing import Any

from titans_jax.bench.hlo import Program
from titans_jax.bench.processes import Timer, sample

CHIP = "v5e:1x1"
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment for libtpu, set before jax is imported: no cloud queries and no output."""


def quiet() -> None:
    """Prepare this process for libtpu, which ends a process with flags of XLA that it does not know."""
    os.environ.update(QUIET)
    os.environ.pop("XLA_FLAGS", None)


def available() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def devices(topology: str) -> list[Any]:
    """The devices of a topology such as "v5e:4x4", which are not here. Raises ValueError for one that there is not."""
    import jax
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    if not available():
        raise ValueError("the TPU compiler is not installed: pip install 'titans-jax[tpu]'")
    quiet()
    jax.config.update("jax_enable_compilation_cache", False)  # a program is not read back without its devices
    # libtpu takes a host of four chips for granted, or has been told of one by a jax that looked for a TPU in vain
    one = math.prod(map(int, re.findall(r"\d+", topology.partition(":")[2]))) == 1
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if one else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices)
    except JaxRuntimeError as error:
        raise ValueError(f"topology {topology!r}: {error}; write e.g. v5e:4x4, v5p:4x4x4 or v6e:2x2") from None


def memory_cycles(**case: Any) -> Timer:
    """{"cycles"} a token of a `memory.program`, and the time to compile it; for a process that has no jax yet."""
    quiet()
    import jax

    from titans_jax.bench import memory

    where, made = jax.sharding.SingleDeviceSharding(devices(CHIP)[0]), memory.program(**case)
    shapes = jax.tree.map(lambda x: x.update(sharding=where), jax.eval_shape(made.inputs))
    lowered = jax.jit(made.function).trace(*shapes).lower(lowering_platforms=("tpu",))
    programs: list[str] = []
    cost = sample(lambda: programs.append(lowered.compile().as_text()))
    return lambda: cost | {"cycles": Program(programs[0]).cycles() / case["length"]}
