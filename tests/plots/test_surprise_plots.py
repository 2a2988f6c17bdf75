"""The dashboard and the grid show what they were given."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from titans_jax import plots


def a_record(T=30):
    draw = np.random.default_rng(0).uniform(0.1, 1, (T, 3, 5)).astype(np.float32)
    return SimpleNamespace(
        surprise=draw[:, 0, 0], momentum=draw[:, 0, 1], weights={"w1": draw, "w2": 2 * draw.swapaxes(1, 2)}
    )


def test_five_panels(tmp_path):
    record, mask = a_record(), np.arange(30) == 7
    series = np.arange(30.0)
    figure = plots.surprise_dashboard(series, record, tmp_path / "a.png", mask=mask, title="Title")
    assert figure.get_size_inches().tolist() == [14, 10] and figure.get_suptitle() == "Title"
    panels = figure.axes[:5]
    titles = [axes.get_title(loc="left").partition(":")[0] for axes in panels]
    assert titles == ["Input Sequence", "Raw Surprise", "Momentum Surprise", "Memory Update Intensity",
                      "Memory Weight Norm"]  # fmt: skip
    assert panels[0].get_subplotspec().get_gridspec().get_geometry() == (3, 2)
    np.testing.assert_array_equal(panels[0].collections[0].get_offsets(), [[7, 7]])
    assert panels[0].collections[0].get_facecolor()[0][0] > 0.7  # red
    np.testing.assert_array_equal(panels[1].lines[-1].get_ydata(), record.surprise)
    np.testing.assert_array_equal(panels[2].lines[-1].get_ydata(), record.momentum)
    image = panels[3].images[0]
    flat = record.weights["w1"].reshape(30, 15)
    np.testing.assert_allclose(image.get_array(), np.abs(flat[1:, :12] - flat[:-1, :12]).T)
    assert image.get_cmap().name == "YlOrRd"
    assert (panels[3].get_xlabel(), panels[3].get_ylabel()) == ("Timestep", "Weight Index")
    norm = np.linalg.norm(flat, axis=1) * 3  # of the layers together
    np.testing.assert_allclose(panels[4].lines[-1].get_ydata(), norm, rtol=1e-6)
    assert json.loads((tmp_path / "a.json").read_text())["marked"] == [7]


def test_several_channels_and_misfits(tmp_path):
    record = a_record()
    figure = plots.surprise_dashboard(np.zeros((30, 3)), record, tmp_path / "a.png")
    assert len(figure.axes[0].lines) == 3
    with pytest.raises(ValueError, match="of 30 steps, the series has 29"):
        plots.surprise_dashboard(np.zeros(29), record, tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"mask: shape \(3,\); expected \[30\]"):
        plots.surprise_dashboard(np.zeros(30), record, tmp_path / "b.png", mask=[True, False, True])
    record.weights = None
    with pytest.raises(ValueError, match="snapshots=True"):
        plots.surprise_dashboard(np.zeros(30), record, tmp_path / "b.png")


def test_a_grid_of_four(tmp_path):
    readings = {f"rate {i}": np.full(10, i) for i in range(4)}
    figure = plots.surprise_grid(readings, tmp_path / "a.png", mask=np.arange(10) == 3, title="T", ylabel="norm")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(readings)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    for axes, line in zip(figure.axes, readings.values(), strict=True):
        np.testing.assert_array_equal(axes.lines[-1].get_ydata(), line)
        assert axes.get_ylim() == figure.axes[0].get_ylim() and axes.get_ylabel() == "norm"
    assert json.loads((tmp_path / "a.json").read_text())["rate 2"] == [2] * 10
    with pytest.raises(ValueError, match=r"with lengths \[1, 2\]; expected one length"):
        plots.surprise_grid({"a": [1], "b": [1, 2]}, tmp_path / "b.png")
