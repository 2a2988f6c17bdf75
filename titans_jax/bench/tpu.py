"""Cycles of a program as the TPU's compiler estimates them, without a TPU.

libtpu (the extra tpu) compiles for a chip that is not here. Its estimates rank programs but do not time them: nothing
overlaps in them, and they are pessimistic where memory is the bound.
"""

import importlib.util
import os
import re
from typing import Any

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


def available() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def memory_cycles(**case: Any) -> Timer:
    """{"cycles"} a token of a `memory.program`, and the time to compile it; for a process that has no jax yet."""
    os.environ.update(QUIET)
    import jax
    from jax.experimental import topologies

    from titans_jax.bench import memory

    # libtpu takes a host of four chips for granted, or has been told of one by a jax that looked for a TPU in vain
    host = topologies.get_topology_desc(platform="tpu", topology_name=CHIP, chips_per_host_bounds=(1, 1, 1))
    where, made = jax.sharding.SingleDeviceSharding(host.devices[0]), memory.program(**case)
    shapes = jax.tree.map(lambda x: x.update(sharding=where), jax.eval_shape(made.inputs))
    lowered = jax.jit(made.function).trace(*shapes).lower(lowering_platforms=("tpu",))
    programs: list[str] = []
    cost = sample(lambda: programs.append(lowered.compile().as_text()))
    return lambda: cost | {"cycles": cycles(programs[0]) / case["length"]}


def cycles(program: str) -> int:
    """The estimated cycles of a compiled program: a loop's body as often as it runs, the dearest of its branches.

    Loops are those of scans, from 0 by 1 to the constant that their condition compares with. Raises ValueError for a
    loop without one.
    """
    computations: dict[str, list[str]] = {}
    for text in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", text):
            computations[header[1]] = lines = []
        elif text.startswith("  ") and computations:
            lines.append(text)

    def of(name: str) -> int:
        return sum(line(text) for text in computations[name])

    def line(text: str) -> int:
        own = int(found[1]) if (found := re.search(r'"estimated_cycles":"(\d+)"', text)) else 0
        if found := re.search(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)", text):
            return own + _trips(computations[found[1]]) * (of(found[1]) + of(found[2]))
        if found := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", text):
            return own + max(of(branch.strip().removeprefix("%")) for branch in found[1].split(","))
        if found := re.search(r" call\(.*to_apply=%([\w.-]+)", text):
            return own + of(found[1])
        return own

    [entry] = re.findall(r"^ENTRY %([\w.-]+)", program, flags=re.MULTILINE)
    return of(entry)


def _trips(condition: list[str]) -> int:
    bounds = [int(found[1]) for text in condition if (found := re.search(r" constant\((\d+)\)", text))]
    if len(bounds) != 1 or not any("direction=LT" in text for text in condition):
        raise ValueError("the TPU compiler's program has a loop whose number of steps its condition does not say")
    return bounds[0]
