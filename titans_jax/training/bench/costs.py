"""What models cost: numbers, FLOPs, bytes and seconds, of steps and of tokens written one by one."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from titans_jax import data
from titans_jax.config import Experiment
from titans_jax.decode import Sampling, stream
from titans_jax.nn import ModelConfig
from titans_jax.results import Row
from titans_jax.training.bench.fit import program
from titans_jax.training.bench.match import flops_per_token, parameters, state_bytes
from titans_jax.training.bench.tuning import medians
from titans_jax.training.placement import Placement
from titans_jax.training.step import define

CONTEXTS = (256, 1024, 4096, 16384, 65536)
"""Tokens read so far, at which a stream's state is weighed and its next token timed."""
STEPS, TOKENS, BLOCKS = 4, 8, 15
"""Training steps, and tokens, in one block of those that are timed; and blocks of tokens, which are short."""


def costs(experiments: Mapping[str, Experiment]) -> Row:
    """Of every model: parameters, state_bytes, flops_per_token, step_bytes, train_tokens_per_second, and by context
    states (bytes) and decode_tokens_per_second of one sequence.

    step_bytes is what a compiled training step holds at once on a device: arguments, results and temporaries, those
    that share their place once; None where the backend does not say. Steps and tokens of all models are timed in
    turn, so that what else the machine does slows all alike. Only full attention's state and speed depend on the
    context: it has a slot for each token of it, and computes on all of them.
    """
    found: Row = {}
    steps: dict[str, Callable[[], Any]] = {}
    tokens: dict[str, Callable[[], Any]] = {}
    for name, experiment in experiments.items():
        model = experiment.model
        steps[name], step_bytes = _stepper(experiment)
        held = {context: replace(model, context=context) if model.grows else model for context in CONTEXTS}
        tokens |= {f"{name} {context}": _writer(held[context]) for context in CONTEXTS[: None if model.grows else 1]}
        found[name] = {
            "parameters": parameters(model),
            "state_bytes": state_bytes(model),
            "flops_per_token": flops_per_token(model, experiment.data.sequence),
            "step_bytes": step_bytes,
            "contexts": list(CONTEXTS),
            "states": [state_bytes(model) for model in held.values()],
        }
    step = medians(steps, STEPS, "cost of steps")
    token = medians(tokens, TOKENS, "cost of tokens", blocks=BLOCKS)
    for name, experiment in experiments.items():
        seconds = [token.get(f"{name} {context}", token[f"{name} {CONTEXTS[0]}"]) for context in CONTEXTS]
        read = experiment.data.batch * experiment.data.sequence
        found[name] |= {
            "train_tokens_per_second": read / step[name],
            "decode_tokens_per_second": [1 / s for s in seconds],
        }
    return found


def _stepper(experiment: Experiment) -> tuple[Callable[[], Any], int | None]:
    """One more training step at every call, and the bytes it holds."""
    placement, parts = Placement.of(experiment.mesh), program(experiment)
    with placement.active():
        batch = placement.device_batch(next(data.train_batches(experiment.data, seed=0)), experiment.data)
        state = parts.start(experiment, placement)
        compiled = parts.step.lower(state, batch).compile()
    memory = compiled.memory_analysis()

    def step() -> Any:
        nonlocal state
        with placement.active():
            state, _ = compiled(state, batch)
        return state.params

    if memory is None:
        return step, None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return step, held + memory.temp_size_in_bytes


def _writer(model: ModelConfig) -> Callable[[], Any]:
    """One more token of one sequence at every call; untrained, since that is as fast."""
    definition = define(model)
    params = jax.jit(definition.init)(jax.random.key(0))
    following = stream(definition.model(params), np.zeros((1, 1), np.int32), Sampling(temperature=0))
    return lambda: next(following)
