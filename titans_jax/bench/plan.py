"""Whether a training step fits the devices of a TPU slice, and what it costs there: compiled without a TPU."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from titans_jax import config, metrics, sharding
from titans_jax.bench.hlo import WIRE, Program
from titans_jax.bench.processes import sample
from titans_jax.checkpoint import by_name
from titans_jax.config import Experiment
from titans_jax.results import Row
from titans_jax.training import counts
from titans_jax.training.errors import memory_advice
from titans_jax.training.placement import Placement
from titans_jax.training.step import Definition, TrainState, define, make_step, optimizer_of


def plan(experiment: Experiment, devices: Sequence[Any]) -> Row:
    """Compile the training step of an experiment for devices that need not be here, and count what it takes.

    All numbers are those of one device. The keys are:
      fits: whether the compiler found room. reason: what it said where it did not, else "".
      parameter_bytes, optimizer_bytes: exact. temporary_bytes, program_bytes: None where the compiler does not say.
      needed_bytes, hbm_bytes: what the step needs, as the compiler says, and what the device has.
      rows_that_fit: an estimate of the largest batch, as if all but parameters and optimizer grew with the batch.
      flops: of matrix products, with what the backward pass computes again, in even shares. useful_flops: without that.
      COLLECTIVE_count, COLLECTIVE_bytes: what a device sends in a step, by kind of collective.
      matmul_seconds, link_seconds: the least that these two take. mfu_bound: MFU is at most this, by these two alone.
      whole, whole_bytes: the parameters that each device holds whole because no axis of theirs divides.
      cycles: the compiler's estimate, to rank programs. compile_seconds: how long the compiler took.

    Raises ValueError for a configuration, mesh or batch that does not match the devices.
    """
    placement, model, data = Placement.of(experiment.mesh, devices), experiment.model, experiment.data
    config.validate(experiment, vocabulary=model.vocab_size, shards=placement.shards)
    chip, n = counts.CHIPS[devices[0].device_kind], len(devices)
    tokens = data.batch * data.sequence / n
    definition, optimizer = define(model), optimizer_of(model, experiment.optim, experiment.train.steps)
    state = abstract_state(definition, optimizer, placement)
    whole = undivided(definition.axes, state.params, placement)
    found: Row = {
        "config": experiment.name,
        "device": devices[0].device_kind,
        "devices": n,
        "mesh": experiment.mesh or f"data={n}",
        "batch": data.batch,
        "sequence": data.sequence,
        "parameters": metrics.count(state.params),
        "parameter_bytes": held_bytes(state.params),
        "optimizer_bytes": held_bytes(state.optimizer),
        "whole": ", ".join(whole),
        "whole_bytes": sum(whole.values()),
        "hbm_bytes": chip.hbm,
        "rows_that_fit": None,
        "flops": counts.flops_per_token(model, data.sequence) * tokens,
        "useful_flops": counts.flops_per_token(model, data.sequence, least=True) * tokens,
    }
    found |= {"matmul_seconds": found["flops"] / chip.flops}
    step = make_step(definition.graphdef, optimizer, experiment.train, experiment.optim.accumulation)
    with placement.active():
        traced = step.trace(state, placement.abstract_batch(data))
    found |= compiled(traced.lower(lowering_platforms=(devices[0].platform,)), state)
    if found["needed_bytes"] is not None:
        fixed = found["parameter_bytes"] + found["optimizer_bytes"]
        rows = data.batch * (chip.hbm - fixed) / (found["needed_bytes"] - fixed)
        found["rows_that_fit"] = max(0, int(rows)) // placement.shards * placement.shards
    if found["fits"]:
        sent = sum(value for name, value in found.items() if name.endswith("_bytes") and name[:-6] in WIRE)
        floor = max(found["matmul_seconds"], sent / chip.links)
        found |= {"link_seconds": sent / chip.links, "mfu_bound": found["useful_flops"] / chip.flops / floor}
    return found


def compiled(lowered: Any, state: TrainState) -> Row:
    """What the compiler says of the step: the keys of `plan` from fits to needed_bytes, and its collectives."""
    programs: list[Any] = []
    try:
        with memory_advice():
            cost = sample(lambda: programs.append(lowered.compile()))
    except MemoryError as error:
        return refused(str(error.__cause__), held_bytes((state.params, state.optimizer)))
    memory = programs[0].memory_analysis()
    sizes = {
        "temporary_bytes": memory.temp_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    buffers = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    program = Program(programs[0].as_text())
    return {
        "fits": True,
        "reason": "",
        **sizes,
        "needed_bytes": buffers + sum(sizes.values()),
        **{f"{kind}_{what}": value for kind, row in program.collectives().items() for what, value in row.items()},
        "cycles": program.cycles(),
        "compile_seconds": cost["wall"],
    }


def refused(message: str, fixed: int) -> Row:
    """The keys of `plan` where the compiler found no room. fixed: bytes of parameters and optimizer.

    >>> refused("the total memory required for HLO temporaries (26.5G) exceeds ...", 0)["needed_bytes"] / 2**30
    26.5
    """

    def size(pattern: str) -> float | None:
        found = re.search(pattern.replace("SIZE", r"([\d.]+)([KMGT])"), message)
        return None if found is None else float(found[1]) * 1024.0 ** (1 + "KMGT".index(found[2]))

    temporary, needed = size(r"temporaries \(SIZE\) exceeds"), size("Used SIZE of")
    if temporary is not None:
        needed = temporary + fixed
    reason = message.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return {
        "fits": False,
        "reason": reason,
        "temporary_bytes": temporary,
        "program_bytes": None,
        "needed_bytes": needed,
    }


def abstract_state(definition: Definition, optimizer: optax.GradientTransformation, placement: Placement) -> TrainState:
    """The shapes, dtypes and shardings of `init_state`."""
    key = jax.random.key(0)

    def placed(x: Any, where: Any = None) -> Any:
        where = where or placement.replicated
        if placement.mesh is not None and isinstance(x.sharding, NamedSharding):
            where = NamedSharding(placement.mesh, x.sharding.spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    params = jax.tree.map(placed, definition.shapes, placement.params(definition.axes, definition.shapes))
    with placement.active():
        started = jax.eval_shape(optimizer.init, params)
    return TrainState(params, jax.tree.map(placed, started), placed(jax.eval_shape(lambda: key)))


def held_bytes(tree: Any) -> int:
    """The bytes of a tree's arrays that one device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def undivided(axes: Any, params: Any, placement: Placement) -> dict[str, int]:
    """The bytes, by name, of parameters that are whole on each device though their axes have devices to divide over."""
    mesh = placement.mesh
    if mesh is None:
        return {}

    def devices(names: tuple[str | None, ...]) -> int:
        parts = [(part,) if isinstance(part, str) else part or () for part in sharding.RULES.spec(mesh, names)]
        return math.prod(mesh.shape[name] for part in parts for name in part)

    all_axes = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    return {
        name: x.size * x.dtype.itemsize
        for (name, x), names in zip(by_name(params, "params").items(), all_axes, strict=True)
        if x.sharding.is_fully_replicated and devices(names) > 1
    }
