"""The picture of a stream: one line for what was predicted, one for every layer's surprise."""

import json

import pytest
from PIL import Image

from titans_jax import plots

CURVES = {
    "tokens": [4096, 8192, 10_000],
    "bits_per_byte": [3.0, 2.5, None],
    "loss": [2.0, 1.7, None],
    **{f"layer_{i}/surprise": [4.0 * 10**i, 3.0 * 10**i, 2.5 * 10**i] for i in range(12)},
}


def drawn(curves, path):
    return plots.stream_picture(curves, path).get_axes()


def test_every_line_is_drawn_and_written(tmp_path):
    above, below = drawn(CURVES, tmp_path / "stream.png")
    assert above.lines[0].get_ydata()[:2].tolist() == [3.0, 2.5] and len(above.lines) == 1
    assert [line.get_ydata()[0] for line in below.lines] == [4.0 * 10**i for i in range(12)]
    assert below.get_yscale() == "log" and len(below.get_legend().get_texts()) == 6
    numbers = json.loads((tmp_path / "stream.json").read_text())
    assert numbers["layer_10/surprise"][1] == 3e10 and numbers["bits_per_byte"][2] is None
    with Image.open(tmp_path / "stream.png") as image:
        assert image.width > 1000


def test_without_a_memory_there_is_one_panel(tmp_path):
    [only] = drawn({name: CURVES[name] for name in ("tokens", "bits_per_byte")}, tmp_path / "stream.png")
    assert only.lines[0].get_xdata().tolist() == CURVES["tokens"]


def test_lengths_must_fit(tmp_path):
    with pytest.raises(ValueError, match="expected one length"):
        drawn(CURVES | {"tokens": [1, 2]}, tmp_path / "stream.png")
