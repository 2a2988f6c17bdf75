"""Rounds: every subject takes one sample in turn, so that what else the machine does hits all alike."""

import functools
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax import metrics
from titans_jax.speed.clock import Timer, cores, timer
from titans_jax.training.bench import Row, Rows

MATMUL = "matmul"
"""The subject that every round begins with: two float32 matrices of SIZE x SIZE."""
SIZE = 2048
CLOCKS = ("cpu", "wall")


class Subject(NamedTuple):
    """What is timed. make: compiles, warms up and returns a timer. tokens: of one call. facts: what it is, for JSON.

    flops: of the least matrix products that a token needs, None where they are not counted.
    """

    make: Callable[[], Timer]
    tokens: int
    facts: Mapping[str, Any]
    flops: float | None = None


def settings(kind: str, **chosen: Any) -> Row:
    """What rows were measured under: the kind, what was chosen, the cores, and this library's source, as a digest."""
    return {"bench": kind, "cores": cores(), "source": _source()} | chosen


def run(subjects: Mapping[str, Subject], rounds: int, rows: Rows, *, what: str, matmul: bool = True) -> dict[str, Row]:
    """Sample every subject in each of so many rounds; what was found, by subject.

    A finished round is a row that is kept: after an interruption the others follow. Warm-up is no sample. With matmul,
    the rate of this machine's float32 matrix products is sampled in the same rounds.
    """
    every = ({MATMUL: matmul_subject()} if matmul else {}) | dict(subjects)
    wanted = [f"round {n}" for n in range(1, rounds + 1)]
    missing = [name for name in wanted if name not in rows.rows]
    with metrics.progress((len(missing) + bool(missing)) * len(every), what) as bar:
        timers = {}
        for name, subject in every.items() if missing else ():
            timers[name] = subject.make()
            bar.advance()

        def take() -> Row:
            taken = {}
            for name, timer_ in timers.items():
                taken[name] = dict(timer_())
                bar.advance()
            return taken

        for name in missing:
            rows.get(name, take)
    return summary(every, [rows.rows[name] for name in wanted])


def summary(subjects: Mapping[str, Subject], taken: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Row]:
    """Each subject's facts, and medians, least and largest over the rounds.

    cpu_ms and wall_ms are of 1,000 tokens, tokens_per_second of wall time. Where FLOPs are counted: gflops_per_cpu_s,
    and share, the part of the matmul rate of the same round. Whatever else timers saw is the median over rounds. Of
    MATMUL there is its rate alone.
    """

    def rate(name: str) -> list[float]:
        work = subjects[name].tokens * (subjects[name].flops or 0.0)
        return [work / round_[name]["cpu"] / 1e9 for round_ in taken]

    found: dict[str, Row] = {}
    for name, subject in subjects.items():
        if name == MATMUL:
            found[name] = spread("gflops_per_cpu_s", rate(name))
            continue
        mine = [round_[name] for round_ in taken]
        row: Row = dict(subject.facts) | {"tokens": subject.tokens, "rounds": len(mine)}
        for field, key in (("cpu_ms", "cpu"), ("wall_ms", "wall")):
            row |= spread(field, [1e6 * each[key] / subject.tokens for each in mine])
        row["tokens_per_second"] = 1e6 / row["wall_ms"]
        row |= {field: statistics.median(each[field] for each in mine) for field in mine[0] if field not in CLOCKS}
        if subject.flops is not None:
            row |= {"flops_per_token": subject.flops, "gflops_per_cpu_s": statistics.median(rate(name))}
            if MATMUL in subjects:
                row |= spread("share", [each / most for each, most in zip(rate(name), rate(MATMUL), strict=True)])
        found[name] = row
    return found


def ratios(
    subjects: Mapping[str, Subject], rows: Rows, count: int, pairs: Mapping[str, tuple[str, str]]
) -> dict[str, Row]:
    """How many times one subject's seconds a token another's are, round by round: median, least and largest.

    pairs: by name, two subjects of `run`, the first over the second. times_cpu is of CPU-seconds, times_wall of wall.
    """
    taken = [rows.rows[f"round {n}"] for n in range(1, count + 1)]
    found = {}
    for name, (over, under) in pairs.items():
        row: Row = {"over": over, "under": under}
        for field, clock in (("times_cpu", "cpu"), ("times_wall", "wall")):
            scale = subjects[under].tokens / subjects[over].tokens
            row |= spread(field, [scale * each[over][clock] / each[under][clock] for each in taken])
        found[name] = row
    return found


def spread(field: str, values: Sequence[float]) -> Row:
    """The median under the field's name, the least and the largest beside it.

    >>> spread("cpu", [3.0, 1.0, 2.0])
    {'cpu': 2.0, 'cpu_least': 1.0, 'cpu_most': 3.0}
    """
    return {field: statistics.median(values), f"{field}_least": min(values), f"{field}_most": max(values)}


def done(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, which returns when the device has done its work."""
    return lambda: jax.block_until_ready(call())


def matmul_subject() -> Subject:
    """SIZE x SIZE float32 matrices: what this machine's matrix products can do; a call is one product, "a token"."""

    def make() -> Timer:
        a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE))
        return timer(done(functools.partial(jax.jit(jnp.matmul), a, b)))

    return Subject(make, 1, {}, 2.0 * SIZE**3)


def _source() -> str:
    """A digest of this package's Python: rounds of two versions are not to be mixed."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
