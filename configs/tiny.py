"""The main job: a small MAC (memory as context) that learns Moby-Dick byte by byte, in minutes on two cores."""

from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig


def get_config() -> Experiment:
    return Experiment(
        name="tiny",
        model=ModelConfig(
            block="mac",
            vocab_size=256,
            dim=192,
            depth=4,
            heads=4,
            head_dim=48,
            segment=64,
            window=128,
            memory=MemoryConfig(heads=4, head_dim=32, expansion=2, chunk=64),
        ),
        data=DataConfig(corpus="moby-dick", tokenizer="bytes", sequence=512, batch=8),
        optim=OptimConfig(peak_rate=3e-3, warmup=50),
        train=TrainConfig(steps=600, eval_every=200, save_every=100, prompt="CHAPTER"),
    )
