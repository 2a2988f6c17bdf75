"""The default: a small MAG (memory as gate) on the bytes of Moby-Dick, trained in minutes on two cores."""

from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig


def get_config() -> Experiment:
    return Experiment(
        name="tiny",
        model=ModelConfig(
            block="mag",
            vocab_size=256,
            dim=128,
            depth=4,
            heads=4,
            head_dim=32,
            segment=64,
            window=128,
            memory=MemoryConfig(heads=2, head_dim=32, chunk=64, forget=1e-4),
        ),
        data=DataConfig(corpus="moby-dick", tokenizer="bytes", sequence=256, batch=8, facts=0.25),
        optim=OptimConfig(name="muon", peak_rate=0.01, warmup=30),
        train=TrainConfig(steps=450, eval_every=150, save_every=150, prompt="CHAPTER", baseline="transformer"),
    )
