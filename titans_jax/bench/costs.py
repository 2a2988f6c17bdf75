"""The costs of models: parameters, FLOPs, bytes and seconds of training steps and of decoding."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from titans_jax.bench.counts import flops_per_token, parameters, state_bytes
from titans_jax.bench.fit import stepper
from titans_jax.bench.interleave import medians
from titans_jax.config import Experiment
from titans_jax.decode import Sampling, stream
from titans_jax.nn import ModelConfig
from titans_jax.results import Row
from titans_jax.training.step import define

CONTEXTS = (256, 1024, 4096, 16384, 65536)
"""Tokens read so far, at which a state is weighed and the next token timed."""
STEPS, TOKENS, BLOCKS = 4, 8, 15
"""Training steps and tokens of a block that is timed; blocks of tokens."""


def costs(experiments: Mapping[str, Experiment]) -> Row:
    """Of every model: parameters, state_bytes, flops_per_token, step_bytes and train_tokens_per_second; and for one
    sequence by context: states (bytes) and decode_tokens_per_second.

    step_bytes is what a compiled training step holds at once on a device: arguments, results and temporaries; None
    where the backend does not say. Only full attention's state and speed depend on the context.
    """
    found: Row = {}
    steps: dict[str, Callable[[], Any]] = {}
    tokens: dict[str, Callable[[], Any]] = {}
    for name, experiment in experiments.items():
        model = experiment.model
        steps[name], compiled = stepper(experiment)
        models = {context: replace(model, context=context) if model.grows else model for context in CONTEXTS}
        tokens |= {f"{name} {context}": _writer(models[context]) for context in CONTEXTS[: None if model.grows else 1]}
        found[name] = {
            "parameters": parameters(model),
            "state_bytes": state_bytes(model),
            "flops_per_token": flops_per_token(model, experiment.data.sequence),
            "step_bytes": _step_bytes(compiled),
            "contexts": list(CONTEXTS),
            "states": [state_bytes(model) for model in models.values()],
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


def _step_bytes(compiled: jax.stages.Compiled) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    total: int = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return total + memory.temp_size_in_bytes


def _writer(model: ModelConfig) -> Callable[[], Any]:
    """Each call writes one more token of one sequence. The model is not trained, since that is as fast."""
    definition = define(model)
    params = jax.jit(definition.init)(jax.random.key(0))
    following = stream(definition.model(params), np.zeros((1, 1), np.int32), Sampling(temperature=0))
    return lambda: next(following)
