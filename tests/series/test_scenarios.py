"""Surprise as an anomaly score, the generators, and the scenarios with their pictures."""

import json
import math

import jax
import numpy as np
import pytest

from titans_jax import cli
from titans_jax.series import (
    SCENARIOS,
    THRESHOLD,
    anomaly_scores,
    generate_frequency_shift,
    generate_repeating_with_anomalies,
    percentile_of_others,
    precision_recall,
    run_scenario,
    series_memory,
    series_rule,
)


@pytest.fixture(scope="module")
def memory():
    return series_memory(series_rule())


def test_a_pattern_with_anomalies():
    series, mask = generate_repeating_with_anomalies([1, 2, 3], 4, [4, 11], 99)
    assert series.tolist() == [1, 2, 3, 1, 99, 3, 1, 2, 3, 1, 2, 99]
    assert np.flatnonzero(mask).tolist() == [4, 11]
    for wrong in (dict(anomaly_indices=[12]), dict(anomaly_indices=[-1]), dict(pattern=[]), dict(repeats=0)):
        with pytest.raises(ValueError, match="each must be 0 or more and below"):
            arguments = dict(pattern=[1, 2, 3], repeats=4, anomaly_indices=[], anomaly_value=9) | wrong
            generate_repeating_with_anomalies(**arguments)


def test_a_wave_changes_its_frequency_and_not_its_phase():
    series, shifts = generate_frequency_shift(200, 0.05, 0.2, 90)
    assert shifts.tolist() == [90]
    t = np.arange(200)
    np.testing.assert_allclose(series[:91], np.sin(2 * np.pi * 0.05 * t[:91]), atol=1e-5)
    np.testing.assert_allclose(series[90:], np.sin(2 * np.pi * (0.05 * 90 + 0.2 * (t[90:] - 90))), atol=1e-5)
    with pytest.raises(ValueError, match="shift_at: 200; it must be above 0 and below the length, 200"):
        generate_frequency_shift(200, 0.05, 0.2, 200)


def test_the_scenarios_are_the_mission_s():
    made = {name: scenario.make() for name, scenario in SCENARIOS.items()}
    series, mask = made["1"]
    assert len(series) == 60 and series[:3].tolist() == [1, 2, 3]
    assert np.flatnonzero(mask).tolist() == [14, 35, 50] and set(series[mask]) == {99}
    wave, shift = made["2"]
    assert len(wave) == 200 and np.flatnonzero(shift).tolist() == [100]
    crossings = lambda x: int((np.diff(np.sign(x[x != 0])) != 0).sum())
    assert (crossings(wave[1:100]), crossings(wave[101:])) == (9, 39)  # 0.05 and 0.2 cycles a step, two each
    for name in ("3", "4"):
        series, mask = made[name]
        assert len(series) == 60 and series[:4].tolist() == [1, 2, 3, 4]
        assert np.flatnonzero(mask).tolist() == [12, 30, 45] and set(series[mask]) == {80}
    assert [momentum for momentum, _ in SCENARIOS["3"].readings.values()] == [0, 0.5, 0.9, 0.99]
    assert [forget for _, forget in SCENARIOS["4"].readings.values()] == [0, 0.005, 0.02, 0.1]


def test_scores_compare_with_the_steps_before_alone():
    surprise = np.random.default_rng(0).uniform(1, 2, 60)
    surprise[[30, 31, 32]] = 90, 40, 20  # an anomaly and what it upsets
    scores = anomaly_scores(surprise)
    assert scores[30] == pytest.approx(90 / max(np.quantile(surprise[10:30], 0.9), surprise[25:30].max()))
    assert scores[31] == pytest.approx(40 / 90) and scores[32] == pytest.approx(20 / 90)
    assert (np.delete(scores, 30) < 3).all()
    np.testing.assert_array_equal(anomaly_scores(surprise[:40]), scores[:40])
    np.testing.assert_allclose(anomaly_scores(7 * surprise), scores)  # in no unit
    assert anomaly_scores([5.0]).tolist() == [0.0]
    with pytest.raises(ValueError, match="surprise is below 0"):
        anomaly_scores([1.0, -1.0])
    with pytest.raises(ValueError, match="1 <= recent <= window"):
        anomaly_scores(surprise, window=3, recent=4)


def test_precision_and_recall():
    assert precision_recall([1, 1, 1, 0, 0], [1, 0, 0, 1, 0]) == (1 / 3, 1 / 2)
    precision, recall = precision_recall([0, 0], [0, 1])
    assert math.isnan(precision) and recall == 0
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        precision_recall([0, 1], [0, 1, 0])
    assert percentile_of_others([9, 9, 1, 2, 50, 3], [0, 0, 0, 0, 1, 0], first=2, percent=100) == 3


def test_an_ordinary_value_in_the_wrong_place_is_found_by_what_was_learned(memory):
    """No value is out of the ordinary here: only a memory of the pattern can tell, and one that never wrote cannot."""
    series, mask = generate_repeating_with_anomalies([1, 2, 3, 4], 60, [101, 150, 212], 4)
    assert set(series) == {1, 2, 3, 4}
    later = np.arange(240) >= 40

    def found(seed, rate):
        surprise = memory.process(memory.init(jax.random.key(seed)), series[:, None], rate=rate)[0].surprise
        return precision_recall((anomaly_scores(surprise) > THRESHOLD) & later, mask)

    learned, frozen = ([found(seed, rate) for seed in range(4)] for rate in (0.05, 0.0))
    assert [recall for _, recall in learned] == [1, 1, 1, 1]
    assert min(precision for precision, _ in learned) >= 0.75
    assert [recall for _, recall in frozen] == [0, 0, 0, 0]


def test_a_scenario_draws_and_counts(memory, tmp_path):
    result = run_scenario("1", tmp_path, memory=memory)
    numbers = {name.removeprefix("scenario_1_momentum_0.9_forget_rate_0.01_"): x for name, x in result.items()}
    assert numbers["precision"] == numbers["recall"] == 1
    assert numbers["least_anomaly"] > 20 * numbers["largest_other"] >= numbers["percentile_99"]
    drawn = json.loads((tmp_path / "scenario_1.json").read_text())
    assert drawn["marked"] == [14, 35, 50] and drawn["surprise"][35] == pytest.approx(max(drawn["surprise"]), rel=0.1)
    assert (tmp_path / "scenario_1.png").read_bytes()[1:4] == b"PNG"

    momenta = run_scenario("3", tmp_path, memory=memory)
    assert {name for name in momenta if name.endswith("recall")} == {
        f"scenario_3_momentum_{momentum}_recall" for momentum in (0.0, 0.5, 0.9, 0.99)
    }
    lines = json.loads((tmp_path / "scenario_3.json").read_text())
    after = {name: np.mean(lines[name][13:16]) for name in lines if name != "marked"}  # the steps after an anomaly
    assert sorted(after, key=after.get) == list(after)  # the more momentum, the longer surprise lasts

    norms = run_scenario("4", tmp_path, memory=memory)
    last = [norms[f"scenario_4_forget_rate_{rate}_weight_norm"] for rate in (0.0, 0.005, 0.02, 0.1)]
    assert last == sorted(last, reverse=True) and last[0] > 2 * last[-1]
    with pytest.raises(ValueError, match="scenario: '5'; it must be one of 1, 2, 3, 4"):
        run_scenario("5", tmp_path)


def test_the_command(tmp_path, capsys):
    assert cli.main(["plot", "surprise", "--scenario", "2", "--rule", "deltanet", "--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "scenario_2.png").is_file() and "scenario_2.png" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rule"] == "deltanet" and result["seed"] == 42
    assert cli.main(["plot", "surprise", "--scenario", "5"]) == 2


def test_the_picture_of_learning(tmp_path, capsys):
    assert cli.main(["plot", "learning", "--output", str(tmp_path / "learns.png")]) == 0
    assert "mean surprise of 20 values" in capsys.readouterr().out
    assert (tmp_path / "learns.png").stat().st_size < 150_000  # it is shown in README
    numbers = json.loads((tmp_path / "learns.json").read_text())
    first, before, after, last = (
        np.mean(numbers["surprise"][at : at + 20]) for at in (0, numbers["shift"] - 20, numbers["shift"], 260)
    )
    assert first > 5 * before and after > 3 * before and last < before / 5
