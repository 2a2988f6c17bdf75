"""Pictures of what goes on inside a model: what is drawn, and written beside, is what was given."""

import json

import numpy as np
import pytest
from PIL import Image

from titans_jax import plots

RNG = np.random.default_rng(0)


def maps(layers: int = 3, heads: int = 2, tokens: int = 5) -> dict[str, np.ndarray]:
    weights = np.tril(RNG.uniform(0.1, 1, (layers, heads, tokens, tokens)))
    return {"tokens": 0.6 * weights / weights.sum(-1, keepdims=True), "memory": np.tril(weights) / 20}


def numbers(path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


def images(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def test_maps_of_every_head(tmp_path):
    given = maps()
    given["tokens"][1] = given["memory"][1] = np.nan  # a layer without attention is left out
    figure = plots.attention_maps(given, tmp_path / "a.png")
    expected = [given[name][layer, head] for name in given for layer in (0, 2) for head in range(2)]
    np.testing.assert_array_equal(images(figure), expected)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["layer 0", "layer 2"] * 2
    share = numbers(tmp_path / "a.png")["share"]
    assert share["tokens"][1] == [None, None] and share["tokens"][0] == pytest.approx([0.6, 0.6])
    with pytest.raises(ValueError, match=r"tokens \(3, 2, 5, 5\), memory \(3, 2, 5\)"):
        plots.attention_maps(given | {"memory": given["memory"][..., 0]}, tmp_path / "b.png")


def test_a_layer_large_enough_to_read(tmp_path):
    given = {name: weights[0] for name, weights in maps().items()}
    figure = plots.head_grid(given, ["a", " ", "\n", "$x$", "é"], tmp_path / "a.png", layer=7)
    np.testing.assert_array_equal(images(figure), [*given["tokens"], *given["memory"]])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "␣", "↵", "$x$", "é"]
    assert numbers(tmp_path / "a.png")["layer"] == 7
    with pytest.raises(ValueError, match="text has 2 pieces for"):
        plots.head_grid(given, "ab", tmp_path / "b.png", layer=0)


def test_heads_and_layers_side_by_side(tmp_path):
    values = {"distance": np.array([[1.0, 20.0], [np.nan, np.nan]]), "reach": np.array([[3.0, 4.0], [5.0, 6.0]])}
    figure = plots.head_comparison(values, tmp_path / "heads.png")
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["1", "20", "", ""], list("3456")]
    far = {"tokens": np.array([[0.5, 0.2], [0.4, 0.0]])}
    shares = {"tokens": np.array([0.7, 0.4]), "persistent tokens": np.array([0.3, 0.6])}
    figure = plots.layer_analysis(far, shares, values["reach"], tmp_path / "layers.png")
    distance, what, wide = figure.axes
    np.testing.assert_array_equal(distance.lines[0].get_ydata(), [0.5, 0.2])
    assert np.isnan(distance.lines[1].get_ydata()[1])  # no weight has no logarithm
    assert [bar.get_y() + bar.get_height() for bar in what.patches] == pytest.approx([0.7, 0.4, 1, 1])
    np.testing.assert_array_equal(wide.lines[-1].get_ydata(), [3.5, 5.5])
    assert numbers(tmp_path / "layers.png")["reach"] == [[3, 4], [5, 6]]


def test_strips_over_tokens(tmp_path):
    values = {"Surprise": RNG.uniform(0, 1, (2, 3, 6)), "Rate": np.zeros((2, 3, 6))}
    figure = plots.memory_activity(values, tmp_path / "a.png", names=[1, 3])
    np.testing.assert_array_equal(images(figure)[0], values["Surprise"].reshape(6, 6))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["layer 1", "layer 3"]
    np.testing.assert_allclose(numbers(tmp_path / "a.png")["Surprise"], values["Surprise"].mean(1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"Rate \(3, 6\)"):
        plots.memory_activity(values | {"Rate": values["Rate"][0]}, tmp_path / "b.png")


def test_updates_and_what_was_learned(tmp_path):
    surprise = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    change = np.array([[0.1, 0.2, 0.3, 0.5], [0.0, 0.2, 0.3, 0.5]])
    of_layers = {1: np.array([0.0, 1.0]), 3: np.array([0.0, 2.0])}
    learned = {"rank": of_layers, "change_rank": of_layers, "drift": of_layers}
    figure = plots.memory_updates(surprise, change, [0, 4], learned, tmp_path / "a.png")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), change[0])
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_xdata(), change[1][1:])
    np.testing.assert_array_equal(figure.axes[4].lines[1].get_ydata(), [0, 2])
    assert numbers(tmp_path / "a.png")["correlation"] == pytest.approx([1, -1])


def test_state_and_norms(tmp_path):
    first = {2: {"w": RNG.normal(size=(2, 3, 4))}}
    last = {2: {"w": first[2]["w"] + np.array([3.0, 4.0])[:, None, None]}}
    figure = plots.memory_state(first, last, tmp_path / "state.png")
    np.testing.assert_allclose(images(figure), [*last[2]["w"], *(last[2]["w"] - first[2]["w"])])
    assert numbers(tmp_path / "state.png")["norm_of_change"]["2"]["w"] == pytest.approx([3 * 12**0.5, 4 * 12**0.5])
    with pytest.raises(ValueError, match=r"layers \[2\], last \[3\]"):
        plots.memory_state(first, {3: last[2]}, tmp_path / "b.png")
    keys = {"keys": np.stack([np.tile(np.arange(5.0), (2, 1)), np.full((2, 5), np.nan)])}
    figure = plots.norms(keys, tmp_path / "norms.png")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0"]
    assert numbers(tmp_path / "norms.png")["median"]["keys"] == [[2, 2], [None, None]]


def test_relevance_and_positions(tmp_path):
    found = {
        "reading": {"divergence": [0.5, None], "loss": [0.25, None]},
        "attention": {"divergence": [None, 1.0], "loss": [None, -0.5]},
    }
    figure = plots.ablation_bars(found, tmp_path / "ablation.png")
    heights = np.array([[bar.get_height() for bar in axes.patches] for axes in figure.axes])
    np.testing.assert_array_equal(heights, [[0.5, np.nan, np.nan, 1.0], [0.25, np.nan, np.nan, -0.5]])
    assert numbers(tmp_path / "ablation.png") == found
    curve = {"first": [0, 4], "last": [3, 7], "loss": [2.0, 1.5], "standard_error": [None, 0.1], "accuracy": [0.2, 0.4]}
    figure = plots.positions_curve(curve, tmp_path / "positions.png")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[1.5, 2.0], [5.5, 1.5]])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [0.2, 0.4])


@pytest.mark.parametrize("part", ["both", "attention", "memory"])
def test_a_picture_for_every_token_that_was_written(tmp_path, part):
    given = maps(tokens=5) if part != "memory" else None
    if given:
        given["tokens"][1] = given["memory"][1] = np.nan
    memory = {"Surprise": RNG.uniform(0, 1, (3, 5))} if part != "attention" else None
    path = tmp_path / "new" / "a.gif"
    figure = plots.generation(["ab", "c", "\n", "d", "e"], path, prompt=3, attention=given, memory=memory)
    with Image.open(path) as moving:
        assert moving.n_frames == 2 and moving.info["duration"] == 200 and moving.info["loop"] == 0
        frames = []
        for i in range(2):
            moving.seek(i)
            frames.append(np.asarray(moving.convert("RGB")))
    assert (frames[0] != frames[1]).any()
    letters = [text.get_text() for text in figure.axes[0].texts if text.get_visible()]
    assert letters == ["ab", "c", "↵", "d", "e"]
    beside = numbers(path)
    assert beside["prompt"] == 3
    if given:
        expected = np.nanmean(given["tokens"], (0, 1))[4]
        np.testing.assert_allclose(beside["weights"]["tokens"][1], expected, rtol=1e-5)
    if memory:
        drawn = np.ma.filled(figure.axes[-1].images[0].get_array(), np.nan)
        np.testing.assert_array_equal(drawn[:, :4], memory["Surprise"][:, :4])
        assert np.isnan(drawn[:, 4]).all()  # the last token was drawn, not read


def test_nothing_written_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="prompt 2, arrays"):
        plots.generation(["a", "b"], tmp_path / "a.gif", prompt=2, attention=None, memory=None)
