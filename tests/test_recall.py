"""What the memories are for: a small model learns, in little time, to say what stood in segments before."""

from dataclasses import replace

import pytest

from configs.passkey import get_config
from titans_jax import training


@pytest.mark.slow
def test_mac_learns_to_recall_a_pass_key(tmp_path):
    given = get_config()
    train = replace(given.train, eval_every=300, save_every=300, sample=0)
    result = training.run(replace(given, train=train, output_dir=str(tmp_path)))
    assert result["accuracy"] > 0.9  # of the answers' tokens; 0.46 where nothing is recalled
