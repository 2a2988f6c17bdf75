"""Long streams at the default initialisation: rounding errors do not grow with the length."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from titans_jax.nn import LM, MemoryConfig, ModelConfig

LENGTH = 2048


@pytest.mark.slow
@pytest.mark.parametrize("forget", [1 / 256, 1 / 32], ids=["default", "1/32"])
@pytest.mark.parametrize("block", ["mac", "lmm"])  # read by attention, and read alone
def test_decoding_2048_tokens_equals_one_call(block: str, forget: float) -> None:
    """With decay to zero they differ by 0.4 and more: see `memory.retention.decay`."""
    memory = MemoryConfig(chunk=32, heads=2, head_dim=32, forget=forget)
    config = ModelConfig(block=block, dim=64, depth=2, heads=2, head_dim=32, segment=32, window=32, memory=memory)
    graphdef, params = nnx.split(LM(config, rngs=nnx.Rngs(0)))
    text = np.random.default_rng(0).integers(0, 256, (1, LENGTH), np.int32)

    @jax.jit
    def read(params: Any, text: Any, state: Any) -> Any:
        logits, state, _ = nnx.merge(graphdef, params)(text, state)
        return logits, state

    start = jax.jit(lambda params: nnx.merge(graphdef, params).init_state(1))(params)
    whole, state, steps = read(params, text, start)[0], start, []
    for at in range(LENGTH):
        logits, state = read(params, text[:, at : at + 1], state)
        steps.append(logits)
    off = np.abs(np.concatenate(steps, 1) - whole).max(-1)[0]
    assert off.max() < 1e-4 * (1 + np.abs(whole).max()), f"off by {off.max():.1e} at token {off.argmax()}"
