"""Pictures of models side by side show the numbers they are given."""

import json

import numpy as np
import pytest

from titans_jax import plots

COSTS = {
    name: {
        "train_tokens_per_second": 1000.0 * (i + 1),
        "decode_tokens_per_second": [400.0, 400.0 - 300 * i],
        "step_bytes": 2e6,
        "parameters": 5000,
        "contexts": [256, 1024],
        "states": [1024, 1024 + 3072 * i],
    }
    for i, name in enumerate(("lmm", "transformer"))
}


def curve(*losses):
    steps = list(range(10, 10 * len(losses) + 1, 10))
    return {
        "step": steps,
        "loss": list(losses),
        "perplexity": [10.0 * x for x in losses],
        "accuracy": [0.5] * len(steps),
    }


def test_curves_are_means_with_their_extremes(tmp_path):
    curves = {"lmm": [curve(3, 2, 1), curve(5, 4, 3), curve(4, 3)], "mac": [curve()]}
    figure = plots.compare_curves(curves, tmp_path / "curves.png")
    [line], [band] = figure.axes[0].lines, figure.axes[0].collections
    np.testing.assert_array_equal(line.get_xydata(), [[10, 4], [20, 3]])  # as far as every seed came
    assert {tuple(p) for p in band.get_paths()[0].vertices} >= {(10, 3), (10, 5), (20, 2), (20, 4)}
    assert figure.axes[1].get_yscale() == "log" and figure.axes[1].lines[0].get_ydata().tolist() == [40, 30]
    numbers = json.loads((tmp_path / "curves.json").read_text())
    assert numbers["lmm"]["loss"] == [[3, 2], [5, 4], [4, 3]] and numbers["mac"]["step"] == []


def test_places_run_from_the_sequence_s_start_to_its_end(tmp_path):
    places = {"lmm": [[4.0, 2.0], [2.0, 1.0]], "mal": [[1.0, 1.5]], "mac": []}
    figure = plots.compare_places(places, tmp_path / "places.png")
    lines, differences = ([line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes)
    assert lines == [[[0.25, 3], [0.75, 1.5]], [[0.25, 1], [0.75, 1.5]]]
    assert differences == [[[0.25, 1], [0.75, 0]], [[0.25, -1], [0.75, 0]]]
    assert json.loads((tmp_path / "places.json").read_text()) == places


def test_costs_are_bars_and_what_is_not_known_is_left_out(tmp_path):
    figure = plots.compare_costs(COSTS, tmp_path / "costs.png")
    bars = {axes.get_title(loc="left"): [bar.get_width() for bar in axes.patches] for axes in figure.axes}
    assert bars["Training, tokens/s"] == [1000, 2000] and bars["Memory of a training step, MB"] == [2, 2]
    assert bars["Writing one sequence, tokens/s"] == [400, 400]
    assert json.loads((tmp_path / "costs.json").read_text())["models"] == ["lmm", "transformer"]
    unknown = {"lmm": COSTS["lmm"] | {"step_bytes": None}}
    assert len(plots.compare_costs(unknown, tmp_path / "costs.png").axes) == 3


def test_contexts_show_who_grows(tmp_path):
    figure = plots.compare_contexts(COSTS, tmp_path / "contexts.png")
    state, speed = ([list(line.get_ydata()) for line in axes.lines] for axes in figure.axes)
    assert state == [[1024, 1024], [1024, 4096]] and speed == [[400, 400], [400, 100]]
    numbers = json.loads((tmp_path / "contexts.json").read_text())
    assert numbers["transformer"]["states"] == [1024, 4096] and numbers["lmm"]["contexts"] == [256, 1024]


@pytest.mark.parametrize("draw", ["compare_curves", "compare_places", "compare_costs", "compare_contexts"])
def test_nothing_to_compare(draw, tmp_path):
    with pytest.raises(ValueError, match="there is no model to draw"):
        getattr(plots, draw)({}, tmp_path / "never.png")
    assert not list(tmp_path.iterdir())
