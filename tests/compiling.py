"""Compiling fast what then need not run fast: nearly all the time of most tests is spent compiling."""

from collections.abc import Mapping

import jax


def _known(options: Mapping[str, int]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA without such an option
        return False
    return True


QUICK = {"xla_backend_optimization_level": 0}
"""Options for jax.jit: half the time without optimisation; a fifth where XLA for CPUs has its first emitters still."""

if _known(QUICK | {"xla_cpu_use_fusion_emitters": False}):
    QUICK["xla_cpu_use_fusion_emitters"] = False

QUICK_FLAGS = " ".join(f"--{name}={value}" for name, value in QUICK.items()).lower()
"""The same as XLA_FLAGS, for a process of its own."""
