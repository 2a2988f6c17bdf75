"""Interleaved rounds: every subject takes one sample in turn, so that other load on the machine hits all alike."""

import functools
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax import metrics
from titans_jax.bench.clock import Timer, cores, timer
from titans_jax.bench.report import Report, Rows
from titans_jax.results import Row

MATMUL = "matmul"
"""The subject that every round begins with: the product of two float32 matrices of SIZE x SIZE."""
SIZE = 2048
CLOCKS = ("cpu", "wall")


class Subject(NamedTuple):
    """What is timed. make: compiles, warms up and returns a timer. facts: its description, for JSON.

    tokens: of one call; None if it reads none. flops: of a token's least matrix products; None if not counted.
    """

    make: Callable[[], Timer]
    tokens: int | None
    facts: Mapping[str, Any]
    flops: float | None = None


def settings(kind: str, **chosen: Any) -> Row:
    """What rows are measured under: the kind, the options, the cores, and a digest of this package's Python."""
    return {"bench": kind, "cores": cores(), "source": _source()} | chosen


def _source() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


Samples = Sequence[Mapping[str, Row]]
"""Of each round, the sample of every subject."""


def run(
    subjects: Mapping[str, Subject],
    rounds: int,
    rows: Rows,
    *,
    what: str,
    pairs: Mapping[str, tuple[str, str]] | None = None,
    matmul: bool = True,
    **shown: Any,
) -> Report:
    """Sample every subject once in each round; samples that `rows` has are not taken again. Warm-up is no sample.

    Args:
        what: the title of the progress bar.
        pairs: comparisons by name, of two subjects: ratios of seconds a token, the first over the second.
        matmul: also sample the rate of this machine's float32 matrix products in every round.
        shown: other fields of the report.
    """
    every = ({MATMUL: matmul_subject()} if matmul else {}) | dict(subjects)
    names = [(f"round {n}: {name}", name) for n in range(1, rounds + 1) for name in every]
    missing = [(row, name) for row, name in names if row not in rows.rows]
    timers = dict.fromkeys(name for _, name in missing)
    with metrics.Progress(len(timers) + len(missing), what) as bar:
        made = {}
        for name in timers:
            made[name] = every[name].make()
            bar.advance()
        for row, name in missing:
            rows.get(row, lambda name=name: dict(made[name]()))  # type: ignore[misc]
            bar.advance()
    samples = [{name: rows.rows[f"round {n}: {name}"] for name in every} for n in range(1, rounds + 1)]
    found = {name: _row(name, every, samples) for name in every}
    return Report(found, {name: _ratio(*pair, every, samples) for name, pair in (pairs or {}).items()}, **shown)


def _row(name: str, subjects: Mapping[str, Subject], samples: Samples) -> Row:
    """A subject's facts and, over the rounds, median, least and most of its samples.

    With tokens: cpu_ms and wall_ms of 1,000 tokens, and tokens_per_second of wall time. Without: cpu_s and wall_s
    of a call. With FLOPs: gflops_per_cpu_s, and share, the part of the matmul rate of the same round. Other fields
    of the samples: their medians. MATMUL has its rate alone.
    """
    if name == MATMUL:
        return spread("gflops_per_cpu_s", _rates(name, subjects, samples))
    subject, mine = subjects[name], [each[name] for each in samples]
    row: Row = dict(subject.facts) | {"rounds": len(mine)}
    unit, scale = ("s", 1.0) if subject.tokens is None else ("ms", 1e6 / subject.tokens)
    for clock in CLOCKS:
        row |= spread(f"{clock}_{unit}", [scale * each[clock] for each in mine])
    if subject.tokens is not None:
        row |= {"tokens": subject.tokens, "tokens_per_second": 1e6 / row["wall_ms"]}
    row |= {field: statistics.median(each[field] for each in mine) for field in mine[0] if field not in CLOCKS}
    if subject.flops is not None:
        rates = _rates(name, subjects, samples)
        row |= {"flops_per_token": subject.flops, "gflops_per_cpu_s": statistics.median(rates)}
        if MATMUL in subjects:
            most = _rates(MATMUL, subjects, samples)
            row |= spread("share", [rate / best for rate, best in zip(rates, most, strict=True)])
    return row


def _rates(name: str, subjects: Mapping[str, Subject], samples: Samples) -> list[float]:
    work = (subjects[name].tokens or 1) * (subjects[name].flops or 0.0)
    return [work / each[name]["cpu"] / 1e9 for each in samples]


def _ratio(first: str, second: str, subjects: Mapping[str, Subject], samples: Samples) -> Row:
    """times_cpu and times_wall: seconds a token of the first over the second's in the same round."""
    row: Row = {"over": first, "under": second}
    scale = (subjects[second].tokens or 1) / (subjects[first].tokens or 1)
    for clock in CLOCKS:
        row |= spread(f"times_{clock}", [scale * each[first][clock] / each[second][clock] for each in samples])
    return row


def medians(calls: Mapping[str, Callable[[], Any]], block: int, what: str, *, blocks: int = 5) -> dict[str, float]:
    """Seconds of one call: the median over blocks of `block` calls, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())  # compiles
    with metrics.Progress(blocks * len(calls), what) as bar:
        for _ in range(blocks):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(block):
                    out = call()
                jax.block_until_ready(out)
                seconds[name].append((time.perf_counter() - start) / block)
                bar.advance()
    return {name: statistics.median(times) for name, times in seconds.items()}


def spread(field: str, values: Sequence[float]) -> Row:
    """The median under the field's name, and the least and most beside it.

    >>> spread("cpu", [3.0, 1.0, 2.0])
    {'cpu': 2.0, 'cpu_least': 1.0, 'cpu_most': 3.0}
    """
    return {field: statistics.median(values), f"{field}_least": min(values), f"{field}_most": max(values)}


def device_timer(call: Callable[[], Any]) -> Timer:
    """A timer of a call until the device has computed the arrays that it returns."""
    return timer(lambda: jax.block_until_ready(call()))


def matmul_subject() -> Subject:
    """One product of SIZE x SIZE float32 matrices: what this machine's matrix products can do."""

    def make() -> Timer:
        a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE))
        return device_timer(functools.partial(jax.jit(jnp.matmul), a, b))

    return Subject(make, None, {}, 2.0 * SIZE**3)
