"""A model as three serialised functions of arrays (jax.export, StableHLO inside) that run without this library.

    init_state(params, rows) -> state            rows: int32 [B]; only its length is used
    prefill(params, state, tokens) -> logits, state    tokens: int32 [B, segment]
    decode(params, state, token) -> logits, state      token: int32 [B]

params: arrays by name, as in model.safetensors.
state: a list of arrays of constant size.
logits: float32 [B, vocabulary], of the next token.
B is any number: it is symbolic in the functions.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, export

from titans_jax import files
from titans_jax.export import runner
from titans_jax.nn import LM
from titans_jax.training.model_io import named_parameters

PLATFORMS = ("cpu", "cuda", "tpu")


def write(folder: Path, model: LM, *, segment: int, platforms: Sequence[str] = PLATFORMS) -> dict[str, int]:
    """Write the functions, a manifest and run.py, which generates with jax alone, into the folder of `save_model`.

    segment: tokens that prefill reads at once. platforms: some of PLATFORMS. Returns the bytes of each function.
    Raises ValueError for another platform.
    """
    if unknown := set(platforms) - set(PLATFORMS):
        raise ValueError(f"unknown platform {min(unknown)!r}; it must be one of {', '.join(PLATFORMS)}")
    sizes = {}
    for name, exported in functions(model, segment, platforms).items():
        raw = exported.serialize()
        sizes[name] = len(raw)
        files.write(folder / f"{name}.jax", raw)
    manifest = {
        "segment": segment,
        "vocab_size": model.config.vocab_size,
        "platforms": list(platforms),
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "state": [f"{x.dtype}[{', '.join(map(str, x.shape))}]" for x in exported.out_avals[1:]],
    }
    files.write_json(folder / "manifest.json", manifest)
    files.write(folder / "run.py", Path(runner.__file__).read_bytes())
    return sizes


def functions(model: LM, segment: int, platforms: Sequence[str]) -> dict[str, export.Exported]:
    """The three functions of a model by name."""
    graphdef, params = nnx.split(model)
    names, tree = list(named_parameters(model)), jax.tree.structure(nnx.to_pure_dict(params))
    (batch,) = export.symbolic_shape("b")

    def rebuilt(params: dict[str, Array]) -> LM:
        return nnx.merge(graphdef, jax.tree.unflatten(tree, [params[name] for name in names]))

    def init(params: dict[str, Array], rows: Array) -> Any:
        return rebuilt(params).init_state(rows.shape[0])

    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named_parameters(model).items()}
    ids = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    states = jax.eval_shape(init, abstract, ids((batch,)))

    def advance(params: dict[str, Array], state: list[Array], tokens: Array) -> tuple[Array, list[Array]]:
        """Tokens [B, T], or [B]."""
        before = jax.tree.unflatten(jax.tree.structure(states), state)
        logits, after, _ = rebuilt(params)(tokens.reshape(tokens.shape[0], -1), before)
        return logits[:, -1], jax.tree.leaves(after)

    def export_(function: Callable[..., Any], *arguments: Any) -> export.Exported:
        return export.export(jax.jit(function), platforms=platforms)(*arguments)

    state = jax.tree.leaves(states)
    return {
        "init_state": export_(lambda params, rows: jax.tree.leaves(init(params, rows)), abstract, ids((batch,))),
        "prefill": export_(advance, abstract, state, ids((batch, segment))),
        "decode": export_(advance, abstract, state, ids((batch,))),
    }
