import numpy as np
import tensorflow_datasets as tfds

from titans_jax.data import needle_splits
from titans_jax.data.needle_dataset import NeedleSetting, TitansNeedle


def test_the_dataset_reads_back_the_samples_in_order(tmp_path):
    setting = NeedleSetting(name="small", sizes=(12, 3, 2), lengths=(8, 16), seed=7)
    TitansNeedle(config=setting, data_dir=tmp_path, file_format="array_record").download_and_prepare()
    splits = ("train", "validation", "test")
    for name, samples in zip(splits, needle_splits(7, (12, 3, 2), (8, 16)), strict=True):
        source = tfds.data_source(
            "titans_needle",
            split=name,
            data_dir=tmp_path,
            builder_kwargs={"config": setting, "file_format": "array_record"},
        )
        assert len(source) == len(samples.length)
        for record, tokens, length, position in zip(source, *samples, strict=True):
            np.testing.assert_array_equal(record["tokens"], tokens[:length])
            assert (record["length"], record["position"]) == (length, position)


def test_the_default_is_titan_mins():
    [setting] = TitansNeedle.BUILDER_CONFIGS
    assert (sum(setting.sizes), setting.lengths, setting.seed) == (10_000, (64, 128, 256), 42)
