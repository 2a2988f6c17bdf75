"""Recall of eight facts from beyond attention's window, with few parameters, for `bench recall`."""

from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig


def get_config() -> Experiment:
    return Experiment(
        name="recall",
        model=ModelConfig(
            block="mac",
            vocab_size=256,
            dim=32,
            depth=2,
            heads=2,
            head_dim=16,
            segment=16,
            window=16,
            context=64,
            memory=MemoryConfig(heads=2, head_dim=32, chunk=16),
        ),
        data=DataConfig(task="mqar_16", sequence=64, batch=16),
        optim=OptimConfig(name="muon", peak_rate=0.03, warmup=30),
        train=TrainConfig(steps=150, eval_batches=4),
    )
