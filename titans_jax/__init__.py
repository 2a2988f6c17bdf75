"""Sequence models with a neural memory: a small network inside the model that learns while the model reads.

The library implements Titans, MIRAS, TNT, ATLAS, HOPE and related models in JAX. Memories run as matrix products over
chunks of tokens. Their state has a fixed size for a stream of any length.

A memory alone, in jax:

    rule = titans_jax.presets.titans(64)                        # or any of titans_jax.PRESETS
    memory = titans_jax.miras(rule, chunk=16)
    state = memory.init(rule.architecture.init(jax.random.key(0)))
    y, state, info = memory.update(state, q, k, v, titans_jax.Gates(rate, momentum, keep))

A language model, in flax:

    model = titans_jax.LM(titans_jax.ModelConfig(block="mac"), rngs=nnx.Rngs(0))
    logits, state, info = model(tokens, model.init_state(batch))    # training, prefill and decoding
    titans_jax.generate(model, prompts, length=100, key=jax.random.key(0))

On the command line: `python train.py NAME`, `titans-jax --help`.

Packages; each imports only packages above it:

    memory       rules (architecture, bias, retention, learner) and the engines that run them; needs jax alone
    nn           blocks (MAC, MAG, MAL, LMM, HOPE, transformer) and the language model
    optim        M3 and other optimizers
    data         text, synthetic tasks and tokenizers as batches of numpy arrays
    decode       generation and streaming
    plots        pictures, each with its numbers as JSON
    series       memories of real-valued series: prediction, surprise, anomalies
    interop      conversion from and to titans-pytorch
    evaluation   held-out text, needles in haystacks, ablations, reports
    training     the training loop
    export       safetensors with a model card, and StableHLO
    needle       Titan-Min: a model that finds a needle among random tokens
    bench        measurements of speed, memory and quality
    cli          the commands
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titans_jax.config import Experiment
    from titans_jax.decode import generate
    from titans_jax.memory import PRESETS, Gates, Memory, Rule, State, miras, presets
    from titans_jax.nn import LM, MemoryConfig, MemoryLayer, ModelConfig
    from titans_jax.optim import m3

try:
    __version__ = version("titans-jax")
except PackageNotFoundError:  # the checkout is not installed
    __version__ = "0+checkout"

_EXPORTS = {
    "config": ("Experiment",),
    "decode": ("generate",),
    "memory": ("PRESETS", "Gates", "Memory", "Rule", "State", "miras", "presets"),
    "nn": ("LM", "MemoryConfig", "MemoryLayer", "ModelConfig"),
    "optim": ("m3",),
}
_MODULES = {name: f"titans_jax.{package}" for package, names in _EXPORTS.items() for name in names}

__all__ = [
    "LM",
    "PRESETS",
    "Experiment",
    "Gates",
    "Memory",
    "MemoryConfig",
    "MemoryLayer",
    "ModelConfig",
    "Rule",
    "State",
    "__version__",
    "generate",
    "m3",
    "miras",
    "presets",
]


def __getattr__(name: str) -> Any:
    """Import an exported name at its first use, so that `import titans_jax` is fast."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
