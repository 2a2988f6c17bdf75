"""The heatmaps of needles: each cell says its number, what was refused is hatched and null."""

import json

import pytest
from matplotlib.patches import Rectangle

from titans_jax import plots


def test_cells_say_their_numbers_and_what_was_refused_is_hatched(tmp_path):
    half = {"exact": [[1.0, None], [0.25, None]], "accuracy": [[1.0, None], [0.5, None]]}
    whole = {"exact": [[0.0, 0.75], [0.0, 1.0]], "accuracy": [[0.1, 0.8], [0.2, 1.0]]}
    figure = plots.haystack_picture({"half": half, "whole": whole}, [512, 65536], [0.0, 1.0], tmp_path / "a.png")
    panels = figure.axes[:4]
    said = [[text.get_text() for text in axes.texts] for axes in panels]
    assert said == [["100", "25"], ["0", "75", "0", "100"], ["100", "50"], ["10", "80", "20", "100"]]
    hatched = [[patch for patch in axes.patches if isinstance(patch, Rectangle)] for axes in panels]
    assert [len(patches) for patches in hatched] == [2, 0, 2, 0]
    assert [patch.get_x() for patch in hatched[0]] == [0.5, 0.5]  # the second length
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["512", "64K"]
    assert [axes.get_title(loc="left") for axes in panels] == ["half", "whole", "", ""]
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["half"]["exact"] == [[1.0, None], [0.25, None]] and numbers["lengths"] == [512, 65536]
    with pytest.raises(ValueError, match=r"half: expected grids of \[depths, lengths\] = \[1, 2\]"):
        plots.haystack_picture({"half": half}, [512, 65536], [0.0], tmp_path / "b.png")
