"""The needle samples as a TFDS dataset of array records; TensorFlow itself is not needed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from titans_jax.data.synthetic import NEEDLE_VOCAB, Needles, needle_splits


@dataclasses.dataclass
class NeedleSetting(tfds.core.BuilderConfig):
    """sizes: samples to train, validate and test. lengths: tokens of a sample. seed: see `needle_splits`."""

    sizes: tuple[int, int, int] = (8000, 1000, 1000)
    lengths: tuple[int, ...] = (64, 128, 256)
    seed: int = 42


class TitansNeedle(tfds.core.GeneratorBasedBuilder):
    """Samples of `needle_splits`: tokens without padding, and the position of the needle.

    Made by `TitansNeedle(data_dir=..., file_format="array_record").download_and_prepare()`, read by
    `tfds.data_source("titans_needle", split="train", data_dir=..., builder_kwargs={"file_format": "array_record"})`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [NeedleSetting(name="titan_min", description="10,000 samples of 64, 128 or 256 tokens, seed 42")]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "length": tfds.features.Scalar(dtype=np.int32),
            "position": tfds.features.ClassLabel(num_classes=max(self.builder_config.lengths)),
        }
        about = f"One needle among random tokens; {NEEDLE_VOCAB} tokens, 0 is padding and 127 the needle."
        return tfds.core.DatasetInfo(
            builder=self,
            description=about,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("tokens", "position"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        setting = self.builder_config
        parts = needle_splits(setting.seed, setting.sizes, setting.lengths)
        return dict(zip(("train", "validation", "test"), map(self._generate_examples, parts), strict=True))

    def _generate_examples(self, samples: Needles) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (tokens, length, position) in enumerate(zip(*samples, strict=True)):
            yield i, {"tokens": tokens[:length], "length": length, "position": int(position)}
