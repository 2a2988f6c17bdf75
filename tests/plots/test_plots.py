"""Pictures: what is drawn and written beside them is what was given, whatever the text, and no global state moves."""

import itertools
import json
import math
import sys
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf

from titans_jax import plots
from titans_jax.plots.style import drawing, log_ticks


class Info(NamedTuple):
    surprise: np.ndarray
    grad_norm: np.ndarray
    momentum_norm: np.ndarray
    weight_norm: np.ndarray
    clipped: np.ndarray


def an_info(layers: int = 2, tokens: int = 64) -> Info:
    shape = (layers, 3, tokens)
    values = np.random.default_rng(0).uniform(0, 1, (5, *shape)).astype(np.float32)
    values[4] = values[4] > 0.7
    return Info(*values)


def records(steps: int) -> list[dict]:
    train = [{"step": s, "split": "train", "loss": 3 / s, "bits_per_byte": 4 / s} for s in range(1, steps + 1)]
    held_out = [
        {"step": s, "split": "held_out", "loss": 2.0, "bits_per_byte": 1 + (s - 20) ** 2 / 1e3} for s in (10, 20, 30)
    ]
    memory = [{"step": s, "split": "memory", "layer_0/surprise": 1.0} for s in range(1, steps)]
    return train + held_out + memory


def test_loss_curve_shows_the_records(tmp_path):
    figure = plots.loss_curve(records(60), tmp_path / "new" / "loss_curve.png")
    assert (tmp_path / "new/loss_curve.png").read_bytes()[1:4] == b"PNG"
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_array_equal(lines["held out"].get_xdata(), [10, 20, 30])
    assert "1.000" in [text.get_text() for text in figure.axes[0].texts]  # the lowest, named
    numbers = json.loads((tmp_path / "new/loss_curve.json").read_text())
    assert numbers["train"]["step"] == list(range(1, 61))
    assert numbers["train"]["bits_per_byte"][7] == 0.5
    smoothed = lines["train, smoothed"].get_ydata()
    assert smoothed[29] == pytest.approx(np.mean([4 / 29, 4 / 30, 4 / 31]))


def test_a_loss_that_is_zero_from_the_start_is_drawn_without_a_warning(tmp_path):
    log = [{"step": s, "split": "train", "loss": 0.0} for s in range(1, 60)]
    low, high = plots.loss_curve(log, tmp_path / "a.png").axes[0].get_ylim()
    assert low < 0 < high


def test_loss_where_bits_are_not_known(tmp_path):
    log = [{"step": 1, "split": "train", "loss": 3.0}, {"step": 2, "split": "train", "loss": math.nan}]
    figure = plots.loss_curve(log, tmp_path / "a.png")
    assert figure.axes[0].get_ylabel() == "loss (nats per token)"
    assert json.loads((tmp_path / "a.json").read_text())["train"] == {"step": [1, 2], "loss": [3.0, None]}
    with pytest.raises(ValueError, match="none of split 'train' or 'held_out' has a loss"):
        plots.loss_curve([{"step": 1, "split": "memory", "loss": 3.0}], tmp_path / "b.png")


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_memory_picture_shows_means_over_heads_by_layer(tmp_path, layers):
    info = an_info(layers)
    figure = plots.memory_picture(info, tmp_path / "memory.png")
    numbers = json.loads((tmp_path / "memory.json").read_text())
    for axes, name in zip(figure.axes, ("surprise", "grad_norm", "momentum_norm", "weight_norm"), strict=True):
        expected = getattr(info, name).mean(axis=1)
        np.testing.assert_allclose([line.get_ydata() for line in axes.lines[:layers]], expected, rtol=1e-6)
        np.testing.assert_allclose(numbers[name], expected, rtol=1e-5)
    assert "marked" not in numbers
    figure.canvas.draw()
    colours = np.unique(np.asarray(figure.canvas.buffer_rgba()).view(np.uint32))
    assert len(colours) > 20


def test_the_most_surprising_pieces_are_written(tmp_path):
    info = an_info(tokens=300)
    info.surprise[:, :, [30, 100, 101, 250]] += np.array([5.0, 9.0, 8.0, 7.0])
    text = list("x" * 300)
    text[20:31] = "call me Ish"
    text[100], text[250] = "\n", "$y^2$ 鯨"  # a line's end, and what would be a formula and a missing glyph
    figure = plots.memory_picture(info, tmp_path / "memory.png", text=text, marks=3)
    numbers = json.loads((tmp_path / "memory.json").read_text())
    assert [mark["token"] for mark in numbers["marked"]] == [30, 100, 250]  # 101 would touch 100
    assert [mark["text"] for mark in numbers["marked"]] == ["h", "\n", "$y^2$ 鯨"]
    below = figure.axes[0].child_axes[0]
    labels = [label.get_text() for label in below.get_xticklabels()]
    assert labels == ["xxcall me Is[h]", "xxxxxxxxxxxx[↵]", "xxxxxxxxxxxx[$y^2$␣□]"]


def test_misfits(tmp_path):
    info = an_info()
    with pytest.raises(ValueError, match="text has 3 pieces for 64 tokens"):
        plots.memory_picture(info, tmp_path / "a.png", text="abc")
    with pytest.raises(ValueError, match=r"grad_norm \(2, 3, 63\)"):
        plots.memory_picture(info._replace(grad_norm=info.grad_norm[..., 1:]), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_style_stays_inside(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.loss_curve(records(5), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.get_all_fig_managers()  # pyplot knows nothing of it


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^pictures need matplotlib: pip install titans-jax\[plot\]$"):
        plots.loss_curve(records(5), "never.png")


def test_recall_picture_shows_every_share_and_says_where_a_text_did_not_fit(tmp_path):
    found = {
        "memory": {"bits_per_byte": 2.1, "recalled": {256: 1.0, 1024: 0.75}},
        "transformer": {"bits_per_byte": 2.2, "recalled": {256: 0.0}},
    }
    figure = plots.recall_picture(found, tmp_path / "recall.png")
    left, right = figure.axes
    assert [bar.get_height() for bar in left.patches] == [2.1, 2.2]
    shown = [[bar.get_height() for bar in bars] for bars in right.containers]
    assert shown[0] == [1.0, 0.75] and shown[1][0] == 0.0 and math.isnan(shown[1][1])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["memory", "transformer"]
    assert json.loads((tmp_path / "recall.json").read_text())["memory"]["recalled"] == {"256": 1.0, "1024": 0.75}


def test_a_rule_without_momentum_has_no_panel_of_it(tmp_path):
    info = an_info()
    assert len(plots.memory_picture(info, tmp_path / "a.png").axes) == 4
    without = plots.memory_picture(info._replace(momentum_norm=0 * info.momentum_norm), tmp_path / "a.png")
    titles = [axes.get_title(loc="left") for axes in without.axes]
    assert len(titles) == 3 and not any("Momentum" in title for title in titles)
    assert all(axes.get_ylabel() for axes in without.axes)


def test_the_lowest_value_is_written_above_the_axis(tmp_path):
    train = [{"split": "train", "step": n, "loss": 8 - 0.2 * n} for n in range(20)]
    figure = plots.loss_curve([*train, {"split": "held_out", "step": 19, "loss": 2.9}], tmp_path / "a.png")
    [axes] = figure.axes
    [label] = axes.texts
    assert label.get_window_extent().y0 > axes.get_window_extent().y0


def test_a_logarithmic_axis_has_labels_that_do_not_overlap():
    with drawing(3, 3) as figure:
        axes = figure.subplots()
        axes.plot([0.13, 2.9], [1, 2])
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        figure.draw_without_rendering()
        shown = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        places = sorted((label.get_window_extent().x0, label.get_window_extent().x1) for label in shown)
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(places))
    assert {"0.2", "0.5", "1", "2"} <= {label.get_text() for label in shown}
