"""What the memories are for: a small model learns, in little time, to say what stood in segments before."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
def test_mac_learns_to_recall_a_pass_key(run_python, tmp_path):
    steps = [f"--train.{name}=150" for name in ("steps", "eval-every", "save-every")]
    run_python(ROOT / "train.py", "passkey", *steps, "--train.sample=0", "--output-dir", "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["accuracy"] > 0.9  # of the answers' tokens; 0.46 where nothing is recalled
