"""`titans-jax eval` with a full report, of a model with attention and memories."""

import json
import re

import pytest
from PIL import Image

from titans_jax import cli

SMALL = [
    *("--model.block", "mac", "--model.dim", "16", "--model.depth", "2", "--model.heads", "2", "--model.head-dim", "8"),
    *("--model.segment", "16", "--model.memory.chunk", "16", "--model.memory.head-dim", "8"),
    *("--model.memory.rule", "titans_linear", "--model.memory.conv", "0"),
    *("--data.sequence", "32", "--data.batch", "4", "--train.steps", "4", "--train.eval-every", "4"),
    *("--train.eval-batches", "2"),
]


@pytest.mark.slow
def test_a_full_report(tmp_path, capsys):
    run, folder = tmp_path / "run", tmp_path / "report"
    assert cli.main(["train", "tiny", *SMALL, "--output-dir", str(run)]) == 0
    arguments = ["eval", "--checkpoint", str(run), "--limit", "2", "--samples", "2", "--temperature", "0.5"]
    arguments += ["--length", "12"]
    assert cli.main([*arguments, "--output-dir", str(folder)]) == 0
    assert "report.html" in capsys.readouterr().out
    result, report = (json.loads((folder / name).read_text()) for name in ("result.json", "report.json"))
    assert report["loss"] == pytest.approx(result["loss"], rel=1e-5)
    positions = report["position_in_the_sequence"]
    total = sum(loss * tokens for loss, tokens in zip(positions["loss"], positions["tokens"], strict=True))
    assert total / sum(positions["tokens"]) == pytest.approx(result["loss"], rel=1e-4)
    assert len(report["samples"]) == 2 and all(sample["written"] for sample in report["samples"])
    assert set(report["ablation"]) == {"learning", "reading", "context", "attention"}
    assert all(cost > 0 for cost in report["ablation"]["reading"]["divergence"])
    assert report["memory"]["ends"] == [0, 16, 32] and len(report["memory"]["change_rank"]) == 2
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    pictures = sorted(path.name for path in [*folder.glob("*.png"), *folder.glob("*.gif")])
    assert len(pictures) == 12 and page.count("<img src='data:image/") == 12
    assert sorted(re.findall(r"\]\((.*?)\)", text)) == pictures
    assert all((folder / name).with_suffix(".json").is_file() for name in pictures)
    with Image.open(folder / "generation.gif") as moving:
        assert moving.n_frames == 12


def test_a_negative_temperature_is_refused_before_loading(capsys):
    assert cli.main(["eval", "--checkpoint", "nowhere", "--temperature", "-1"]) == 2
    assert "temperature is -1.0" in capsys.readouterr().err
