"""TNT: a memory of large chunks and local ones that begin anew, with sliding attention as a gate, at tiny's size."""

from dataclasses import replace

from titans_jax.config import Experiment, load


def get_config() -> Experiment:
    tiny = load("tiny")
    memory = replace(tiny.model.memory, chunk=128, shard=64, local_chunks=(16,))
    return replace(tiny, name="tnt", model=replace(tiny.model, block="mag", memory=memory))
