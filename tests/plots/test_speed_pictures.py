"""Pictures of speed show the medians and the ends that they are given."""

import json

import pytest

from titans_jax import plots


def row(cpu, **more):
    return {"cpu_ms": cpu, "cpu_ms_least": cpu / 2, "cpu_ms_most": 2 * cpu} | more


def test_bars_have_whiskers_and_what_has_no_share_has_no_bar(tmp_path):
    share = {"share": 0.25, "share_least": 0.2, "share_most": 0.3}
    rows = {"matmul": {"gflops_per_cpu_s": 130.0}, "a": row(10.0) | share, "b": row(40.0)}
    cost, shares = plots.speed_bars(rows, tmp_path / "speed.png").axes
    assert [bar.get_width() for bar in cost.patches] == [10, 40] and [b.get_width() for b in shares.patches] == [0.25]
    whiskers = cost.containers[-1].errorbar.lines[2][0].get_segments()
    assert [[x for x, _ in ends] for ends in whiskers] == [[5, 20], [20, 80]]
    assert [text.get_text() for text in cost.texts] == ["10", "40"] and shares.texts[0].get_text() == "25%"
    assert cost.get_xscale() == "linear" and list(json.loads((tmp_path / "speed.json").read_text())) == ["a", "b"]
    assert plots.speed_bars(rows | {"c": row(1000.0)}, tmp_path / "speed.png").axes[0].get_xscale() == "log"


def test_what_has_no_tokens_leaves_the_other_panels_and_small_shares_keep_their_digits(tmp_path):
    share = {"share": 0.0042, "share_least": 0.004, "share_most": 0.005}
    seconds = {"cpu_s": 2.0, "cpu_s_least": 1.9, "cpu_s_most": 2.1}
    *_, shares = plots.speed_bars({"a": row(10.0) | share, "b": seconds}, tmp_path / "speed.png").axes
    assert [text.get_text() for text in shares.texts] == ["0.42%"]
    labels = [label.get_text() for label in shares.get_xticklabels()]
    assert len({*labels}) == len(labels) > 3 and "0.1%" in labels


def test_lines_are_passes_over_tokens(tmp_path):
    rows = {
        f"{kind} {tokens}": row(cost, tokens=tokens) | {"pass": kind, "bytes_per_token": 2048.0, "peak_bytes": tokens}
        for kind, cost in (("training", 100.0), ("streaming", 20.0))
        for tokens in (1024, 4096, 1 << 20)
    }
    cost, peak, each = plots.speed_lines(rows, tmp_path / "speed.png").axes
    assert [list(line.get_ydata()) for line in cost.lines] == [[100] * 3, [20] * 3]
    assert list(peak.lines[0].get_xdata()) == [1024, 4096, 1 << 20] and list(each.lines[1].get_ydata()) == [2] * 3
    assert [label.get_text() for label in cost.get_xticklabels()] == ["1K", "4K", "1M"]
    assert json.loads((tmp_path / "speed.json").read_text())["training 4096"]["cpu_ms"] == 100


@pytest.mark.parametrize("draw", [plots.speed_bars, plots.speed_lines])
def test_nothing_to_draw(draw, tmp_path):
    with pytest.raises(ValueError, match="no row has cpu_ms"):
        draw({"matmul": {"gflops_per_cpu_s": 1.0}}, tmp_path / "never.png")
    assert not list(tmp_path.iterdir())
