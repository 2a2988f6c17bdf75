"""A small MAC that learns to retrieve a pass key from 512 bytes; --model.block compares other models."""

from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig


def get_config() -> Experiment:
    return Experiment(
        name="passkey",
        model=ModelConfig(
            block="mac",
            dim=64,
            depth=2,
            heads=2,
            head_dim=32,
            segment=64,
            window=128,
            context=512,
            memory=MemoryConfig(heads=2, head_dim=32, chunk=64, forget=1e-5),
        ),
        data=DataConfig(task="passkey", sequence=512, batch=8),
        optim=OptimConfig(name="muon", peak_rate=0.03, warmup=30),
        train=TrainConfig(
            steps=300, eval_every=100, save_every=100, eval_batches=4, prompt="The pass key is ", sample=64
        ),
    )
