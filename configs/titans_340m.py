"""Titans 340M: 24 layers of width 1024, 15B tokens; 573M parameters with its memories."""

from titans_jax.config import Experiment, TrainConfig
from titans_jax.data import DataConfig
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.optim import OptimConfig


def get_config() -> Experiment:
    # The paper's corpus is not part of the package: set --data.corpus and a tokenizer of 32,000 tokens.
    return Experiment(
        name="titans_340m",
        model=ModelConfig(
            block="mac",
            vocab_size=32_000,
            dim=1024,
            depth=24,
            heads=16,
            head_dim=64,
            segment=512,
            window=2048,
            persistent=128,
            dtype="bfloat16",
            remat=True,
            # A TPU's tiles: heads of 128, chunks of 128, one decay per head; the papers' decay is one per channel.
            memory=MemoryConfig(heads=8, head_dim=128, chunk=128),
        ),
        data=DataConfig(sequence=4096, batch=128),
        optim=OptimConfig(peak_rate=1.5e-3, warmup=1000, weight_decay=0.1),
        train=TrainConfig(steps=28_600, log_every=50, eval_every=1000, save_every=500),
    )
