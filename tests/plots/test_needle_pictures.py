import json

import numpy as np

from titans_jax import plots


def test_answers_are_counted_by_length_and_by_tenth(tmp_path):
    length, position = np.array([10, 10, 20, 20, 20]), np.array([0, 9, 0, 19, 10])
    figure = plots.needle_answers(length, position, np.array([0, 8, 0, 19, 11]), tmp_path / "answers.png")
    numbers = json.loads((tmp_path / "answers.json").read_text())
    assert numbers["by_length"] == [0.5, 0.666667]
    assert numbers["by_tenth"] == [1.0, *[None] * 4, 0.0, *[None] * 3, 0.5]
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[0].patches], [0.5, 2 / 3])


def test_a_memory_is_drawn_layer_by_layer_with_its_needle(tmp_path):
    surprise, rate = np.arange(16.0).reshape(2, 8), np.eye(2, 8)
    figure = plots.needle_memory(surprise, rate, 5, 4, tmp_path / "memory.png")
    for axes, values in zip(figure.axes, (surprise, rate), strict=True):
        np.testing.assert_array_equal([line.get_ydata() for line in axes.lines[:2]], values)
        assert [line.get_xdata()[0] for line in axes.lines[2:]] == [3.5, 5]  # a segment begins; the needle
    assert json.loads((tmp_path / "memory.json").read_text())["needle"] == 5


def test_ablations_stand_under_the_whole(tmp_path):
    rows = {"whole": {"32": 1.0, "64": 0.75}, "no memory": {"32": 1.0, "64": 0.5}}
    figure = plots.needle_ablations(rows, tmp_path / "ablations.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["whole", "no memory"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1.0, 1.0, 0.75, 0.5]
    assert json.loads((tmp_path / "ablations.json").read_text()) == rows
