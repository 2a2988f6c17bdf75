"""TNT: a global memory and local memories that are reset, in MAG, at the size of tiny."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    memory = replace(tiny.model.memory, chunk=128, shard=64, local_chunks=(16,))
    return replace(tiny, name="tnt", model=replace(tiny.model, block="mag", memory=memory))
