"""HOPE on parity, for `bench formal`. With rates up to 2 a write can flip the sign of a stored value."""

from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.nn import CMSConfig, MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig


def get_config() -> Experiment:
    return Experiment(
        name="formal",
        model=ModelConfig(
            block="hope",
            dim=32,
            depth=1,
            heads=2,
            head_dim=16,
            attention="full",
            context=512,
            memory=MemoryConfig(rule="dgd_linear", chunk=8, max_rate=2.0, clip=0.7, heads=2, head_dim=16, conv=0),
            cms=CMSConfig(periods=(0,)),
        ),
        data=DataConfig(task="parity", sequence=32, batch=32),
        optim=OptimConfig(peak_rate=0.003, warmup=20, weight_decay=0.01),
        train=TrainConfig(steps=500, eval_batches=8, prompt="ab", sample=16),
    )
