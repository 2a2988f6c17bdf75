"""The flags of the systems that this library replaces, with their names here, in one run."""

import json
import math

import pytest

from titans_jax import cli
from titans_jax.metrics import read_records


@pytest.fixture
def wikitext(tmp_path):
    folder = tmp_path / "wikitext-2-raw"
    folder.mkdir()
    for part, articles in (("train", 40), ("valid", 6), ("test", 6)):
        texts = (f" \n = Article {i} = \n \n The {part} part has {i} lines of this . \n" for i in range(articles))
        (folder / f"wiki.{part}.raw").write_text("".join(texts))
    return folder


@pytest.mark.slow
def test_every_flag_of_the_source_systems_exists(wikitext, tmp_path):
    given = {
        "data.corpus": wikitext,  # --dataset wikitext --wikitext_version 2 --data_path
        "data.cache-dir": tmp_path / "cache",
        "model.block": "mag",  # --use_memory; "transformer" without
        "model.dim": 32,  # --dim --model_dim
        "model.depth": 1,
        "model.heads": 3,  # no divisor of the width
        "model.head-dim": 8,  # --dim-head
        "model.segment": 16,  # --segment-len
        "model.ff-mult": 4,
        "model.attention": "sliding",  # --sliding_window
        "model.window": 16,
        "model.positions": "axial",
        "model.memory.heads": 1,
        "model.memory.head-dim": 8,  # --memory-dim
        "model.memory.chunk": 16,
        "model.dtype": "float16",  # --fp16
        "data.sequence": 32,  # --seq-len --seq_length
        "data.batch": 4,  # --batch-size
        "train.eval-batch": 2,  # --eval-batch-size --val_batch_size
        "optim.peak-rate": 3e-3,  # --lr --learning_rate
        "optim.warmup": 2,  # --warmup-steps
        "optim.clip": 0.5,  # --max-grad-norm
        "optim.accumulation": 2,  # --gradient_accumulation
        "train.label-smoothing": 0.1,
        "train.epochs": 2,  # --max_epochs
        "train.eval-every": 10,  # --eval-interval
        "train.eval-batches": 3,  # --eval-steps
        "train.log-every": 5,  # --log-interval
        "train.save-every": 10,  # --save-interval
        "train.sample": 4,
        "output-dir": tmp_path / "run",
    }
    arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    assert cli.main(["train", "tiny", *arguments]) == 0
    run = json.loads((tmp_path / "run/result.json").read_text())
    rows = math.ceil((len((wikitext / "wiki.train.raw").read_bytes()) + 40) / 32)  # every article's end is a target too
    assert run["steps"] == 2 * math.ceil(rows / 4)
    losses = [record["loss"] for record in read_records(tmp_path / "run") if record["split"] == "held_out"]
    assert losses[-1] < losses[0] < 5.6
    checkpoint = ["--checkpoint", str(tmp_path / "run")]
    which = ["--which", "last", "--split", "test", "--batch", "2", "--no-report"]
    assert cli.main(["eval", *checkpoint, *which]) == 0
    result = json.loads((tmp_path / "run/eval/result.json").read_text())
    assert result["tokens"] == len((wikitext / "wiki.test.raw").read_bytes()) + 6
    sampling = ["--prompt", "The", "--length", "5", "--temperature", "0.7", "--top-k", "50", "--top-p", "0.9"]
    assert cli.main(["generate", *checkpoint, *sampling]) == 0
    [sample] = json.loads((tmp_path / "run/generate/samples.json").read_text())
    assert sample.startswith("The")
