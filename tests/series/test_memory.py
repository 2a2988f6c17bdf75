"""A memory of a series: what it predicts, when it is surprised, and that it sees no future."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.memory import PRESETS, presets
from titans_jax.series import SCENARIOS, generate_repeating_with_anomalies, series_memory, series_rule


@pytest.fixture(scope="module")
def memory():
    return series_memory(series_rule(memory_dim=8, hidden_dim=16))


def start(memory, seed=42):
    return memory.init(jax.random.key(seed))


def column(*values):
    return jnp.asarray(values, jnp.float32)[:, None]


def test_a_linear_memory_by_hand():
    """Eq 13-14 of Titans with the series' keys, a step at a time, in float64."""
    with jax.enable_x64(True):
        memory = series_memory(presets.titans_linear(4), context=2, scale=0.5, clip=None)
        state = start(memory)
        xs = np.array([0.3, -0.2, 0.5, 0.1])
        record, end = memory.process(state, xs[:, None], momentum=0.7, forget_rate=0.1, rate=0.4, snapshots=True)
        F, phase = (np.asarray(x, np.float64) for x in state.projections)
        P = np.cos(np.pi / 4 * np.array([0.5, 1.5, 2.5, 3.5])) / np.sqrt(2)  # of length 1
        W, S = np.zeros((4, 4)), np.zeros((4, 4))
        before = np.concatenate([[0.0, 0.0], xs])
        for t, x in enumerate(xs):
            key = np.cos(before[t : t + 2] @ F + phase)
            key /= np.linalg.norm(key)
            error = key @ W - x * P
            np.testing.assert_allclose(record.prediction[t, 0], key @ W @ P, atol=1e-7)
            np.testing.assert_allclose(record.surprise[t], error @ error, atol=1e-7)
            S = 0.7 * S - 0.4 * 0.5 * np.outer(key, 2 * error)  # the unit rate of ||.||^2 is 1/2
            W = 0.9 * W + S
            np.testing.assert_allclose(record.momentum[t], np.linalg.norm(S), atol=1e-7)
            np.testing.assert_allclose(record.weights["w"][t], W, atol=1e-7)
        np.testing.assert_allclose(end.past[:, 0], xs[-2:])
        np.testing.assert_allclose(record.gates.keep, 0.9)


def test_it_learns_a_pattern_and_with_no_rate_does_not(memory):
    pattern = column(*[1, 2, 3] * 20)
    learned, _ = memory.process(start(memory), pattern)
    frozen, _ = memory.process(start(memory), pattern, rate=0.0, forget_rate=0.0)
    assert learned.surprise[-6:].mean() < 0.2  # to predict the mean of 1, 2, 3 costs 0.67
    np.testing.assert_allclose(learned.prediction[-6:, 0], pattern[-6:, 0], atol=0.6)
    assert frozen.surprise[-6:].mean() > 1
    np.testing.assert_allclose(frozen.weight_norm, frozen.weight_norm[0])


def test_nothing_sees_the_future(memory):
    series = jax.random.normal(jax.random.key(0), (60, 1))
    other = series.at[31:].set(7.0)
    one, _ = memory.process(start(memory), series)
    two, _ = memory.process(start(memory), other)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:31], y[:31]), one, two)
    np.testing.assert_array_equal(one.prediction[31], two.prediction[31])  # made before the step was seen
    assert one.surprise[31] != two.surprise[31]


def test_a_split_series_is_the_same_series_and_snapshots_change_nothing(memory):
    series = jax.random.normal(jax.random.key(0), (60, 1))
    whole, end = memory.process(start(memory), series)
    first, half = memory.process(start(memory), series[:30])
    second, also_end = memory.process(half, series[30:])
    joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first, second)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), joined, whole)
    np.testing.assert_allclose(also_end.memory.dual["w1"], end.memory.dual["w1"], rtol=1e-4, atol=1e-5)
    seen, _ = memory.process(start(memory), series, snapshots=True)
    norms = np.sqrt(sum(np.square(w).sum((1, 2)) for w in seen.weights.values()))
    np.testing.assert_allclose(norms, whole.weight_norm, rtol=1e-4)
    np.testing.assert_allclose(seen.surprise, whole.surprise, rtol=1e-3, atol=1e-5)


def test_momentum_is_the_norm_of_what_is_written(memory):
    """With no forgetting each step moves the weights by S_t, whatever the surprise was."""
    series = jax.random.normal(jax.random.key(1), (60, 1))
    record, _ = memory.process(start(memory), series, forget_rate=0.0, snapshots=True)
    moved = np.sqrt(sum(np.square(np.diff(w, axis=0)).sum((1, 2)) for w in record.weights.values()))
    np.testing.assert_allclose(record.momentum[1:], moved, rtol=1e-3)


def test_the_anomalies_of_scenario_1_stand_out_from_all_other_steps():
    memory, scenario = series_memory(series_rule()), SCENARIOS["1"]
    series, mask = scenario.make()
    for seed in (42, 0, 1):
        record, _ = memory.process(start(memory, seed), series[:, None])
        others = record.surprise[scenario.learned :][~mask[scenario.learned :]]  # those right after one among them
        assert record.surprise[mask].min() > np.percentile(others, 99)
        assert record.surprise[mask].min() > 20 * others.max()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in presets.ALIASES])
def test_any_rule_reads_a_series(name):
    memory = series_memory(PRESETS[name](8), input_dim=2)
    series = jnp.stack([jnp.sin(jnp.arange(40.0)), jnp.cos(jnp.arange(40.0))], axis=1)
    record, end = memory.process(start(memory), series, snapshots=True)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((record, end)))
    changed = [np.abs(np.diff(w, axis=0)).max() for w in record.weights.values()]
    assert max(changed) > 0 and int(end.memory.step) == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["titans", "deltanet", "yaad", "memora", "atlas"])
def test_anomalies_stand_out_whatever_the_rule(name):
    memory = series_memory(PRESETS[name](16))
    series, mask = generate_repeating_with_anomalies([1, 2, 3], 20, [14, 35, 50], 99)
    record, _ = memory.process(start(memory), series[:, None])
    others = record.surprise[6:][~mask[6:]]
    assert record.surprise[mask].min() > np.percentile(others, 99)


def test_what_does_not_fit(memory):
    with pytest.raises(ValueError, match=r"series: shape \(5,\); it must be \[T, 1\]"):
        memory.process(start(memory), jnp.zeros(5))
    with pytest.raises(ValueError, match="input_dim: 8; it must be at least 1 and below the memory's size, 8"):
        series_memory(series_rule(8, 8), input_dim=8)
    with pytest.raises(ValueError, match="context: 0"):
        series_memory(series_rule(), context=0)
    with pytest.raises(ValueError, match="scale: 0; it must be above 0"):
        series_memory(series_rule(), scale=0)
    with pytest.raises(ValueError, match="hidden_dim: 20; it must be a multiple of memory_dim, 16"):
        series_rule(16, 20)
