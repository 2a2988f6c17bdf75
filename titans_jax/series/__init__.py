"""Memories of real-valued series: they predict each value from the ones before, and surprise marks where they fail."""

from titans_jax.series.generators import generate_frequency_shift, generate_repeating_with_anomalies
from titans_jax.series.memory import SeriesMemory, SeriesRecord, SeriesState, series_memory, series_rule
from titans_jax.series.scenarios import SCENARIOS, Scenario, draw_learning, draw_reading, run_scenario
from titans_jax.series.surprise import THRESHOLD, anomaly_scores, percentile_of_others, precision_recall

__all__ = [
    "SCENARIOS",
    "THRESHOLD",
    "Scenario",
    "SeriesMemory",
    "SeriesRecord",
    "SeriesState",
    "anomaly_scores",
    "draw_learning",
    "draw_reading",
    "generate_frequency_shift",
    "generate_repeating_with_anomalies",
    "percentile_of_others",
    "precision_recall",
    "run_scenario",
    "series_memory",
    "series_rule",
]
