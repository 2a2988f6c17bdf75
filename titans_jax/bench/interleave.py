"""Interleaved rounds: every subject takes one sample in turn, so that other load on the machine hits all alike."""

import contextlib
import functools
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax import metrics
from titans_jax.bench.processes import Timer, cores, process, timer
from titans_jax.bench.report import Report, Rows, spread
from titans_jax.results import Row

MATMUL = "matmul"
"""The subject that every round begins with: the product of two float32 matrices of SIZE x SIZE."""
SIZE = 2048
CLOCKS = ("cpu", "wall")


class Subject(NamedTuple):
    """What is timed. function: it is called with `facts`, which are in its row too, and returns a warmed-up timer.

    tokens: of one call; None if it reads none. flops: of a token's least matrix products; None if not counted.
    counted: other numbers of its row. python: the interpreter of its own process; None for this process.
    """

    function: Callable[..., Timer]
    facts: Mapping[str, Any]
    tokens: int | None = None
    flops: float | None = None
    counted: Mapping[str, Any] = {}
    python: str | None = None

    def timer(self, stack: contextlib.ExitStack) -> Timer:
        """Its timer; a process ends with the stack."""
        if self.python is None:
            return self.function(**self.facts)
        target = f"{self.function.__module__}:{self.function.__name__}"
        return stack.enter_context(process(target, self.facts, self.python))


class Plan(NamedTuple):
    """What a benchmark measures. pairs: comparisons by name, of two subjects: ratios of seconds a token."""

    subjects: Mapping[str, Subject]
    pairs: Mapping[str, tuple[str, str]] = {}
    notes: tuple[str, ...] = ()


def settings(kind: str, **chosen: Any) -> Row:
    """What rows are measured under: the kind, the options, the cores, and a digest of this package's Python."""
    return {"bench": kind, "cores": cores(), "source": _source()} | chosen


def _source() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def run(plan: Plan, rows: Rows, rounds: int = 5, *, matmul: bool = True) -> Report:
    """Sample every subject once in each round; samples that `rows` has are not taken again. Warm-up is no sample.

    matmul: also sample the rate of this machine's float32 matrix products in every round.
    """
    subjects = ({MATMUL: Subject(matrix_product, {}, flops=2.0 * SIZE**3)} if matmul else {}) | dict(plan.subjects)
    names = [(f"round {n}: {name}", name) for n in range(1, rounds + 1) for name in subjects]
    missing = [(row, name) for row, name in names if row not in rows.rows]
    sampled, timers = dict.fromkeys(name for _, name in missing), dict[str, Timer]()
    with metrics.Progress(len(sampled) + len(missing), "samples") as bar, contextlib.ExitStack() as stack:
        for name in sampled:
            timers[name] = subjects[name].timer(stack)
            bar.advance()
        for row, name in missing:
            rows.get(row, lambda name=name: dict(timers[name]()))  # type: ignore[misc]
            bar.advance()
    samples = {name: [rows.rows[f"round {n}: {name}"] for n in range(1, rounds + 1)] for name in subjects}
    best = _rates(subjects[MATMUL], samples[MATMUL]) if matmul else None
    found = {name: _row(subject, samples[name], best) for name, subject in subjects.items()}
    ratios = {name: _ratio(pair, subjects, samples) for name, pair in plan.pairs.items()}
    return Report(found, ratios, plan.notes)


def _row(subject: Subject, samples: Sequence[Row], best: Sequence[float] | None) -> Row:
    """A subject's facts and, over the rounds, median, least and most of its samples.

    With tokens: cpu_ms and wall_ms of 1,000 tokens, and tokens_per_second of wall time. Without: cpu_s and wall_s
    of a call. With FLOPs: gflops_per_cpu_s, and share, the part of `best`, the matmul rate of the same round. Other
    fields of the samples: their medians.
    """
    unit, scale = ("s", 1.0) if subject.tokens is None else ("ms", 1e6 / subject.tokens)
    row: Row = {**subject.facts, **subject.counted, "rounds": len(samples)}
    for field in samples[0]:
        values = [each[field] for each in samples]
        if field in CLOCKS:
            row |= spread(f"{field}_{unit}", [scale * value for value in values])
        else:
            row[field] = statistics.median(values)
    if subject.tokens is not None:
        row |= {"tokens": subject.tokens, "tokens_per_second": 1e6 / row["wall_ms"]}
        if subject.flops is not None:
            row["flops_per_token"] = subject.flops
    if subject.flops is not None:
        rates = _rates(subject, samples)
        row |= spread("gflops_per_cpu_s", rates)
        if best is not None:
            row |= spread("share", [rate / most for rate, most in zip(rates, best, strict=True)])
    return row


def _rates(subject: Subject, samples: Sequence[Row]) -> list[float]:
    work = (subject.tokens or 1) * (subject.flops or 0.0)
    return [work / each["cpu"] / 1e9 for each in samples]


def _ratio(pair: tuple[str, str], subjects: Mapping[str, Subject], samples: Mapping[str, Sequence[Row]]) -> Row:
    """times_cpu and times_wall: seconds a token of the first over the second's in the same round."""
    over, under = pair
    scale = (subjects[under].tokens or 1) / (subjects[over].tokens or 1)
    row: Row = {"over": over, "under": under}
    for clock in CLOCKS:
        both = zip(samples[over], samples[under], strict=True)
        row |= spread(f"times_{clock}", [scale * first[clock] / second[clock] for first, second in both])
    return row


def device_timer(call: Callable[[], Any], times: int | None = None) -> Timer:
    """A `timer` of a call until the device has computed the arrays that it returns."""
    return timer(lambda: jax.block_until_ready(call()), times)


def matrix_product() -> Timer:
    """One product of SIZE x SIZE float32 matrices: what this machine's matrix products can do."""
    a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE))
    return device_timer(functools.partial(jax.jit(jnp.matmul), a, b))
