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
from titans_jax.results import Row
from titans_jax.speed.clock import Timer, cores, timer
from titans_jax.training.bench import Rows

MATMUL = "matmul"
"""The subject that every round begins with: two float32 matrices of SIZE x SIZE."""
SIZE = 2048
CLOCKS = ("cpu", "wall")


class Subject(NamedTuple):
    """What is timed. make: compiles, warms up and returns a timer. facts: what it is, for JSON.

    tokens: of one call, None for what has nothing to do with tokens. flops: of the least matrix products that a token
    needs, None where they are not counted.
    """

    make: Callable[[], Timer]
    tokens: int | None
    facts: Mapping[str, Any]
    flops: float | None = None


def settings(kind: str, **chosen: Any) -> Row:
    """What rows were measured under: the kind, what was chosen, the cores, and this library's source, as a digest."""
    return {"bench": kind, "cores": cores(), "source": _source()} | chosen


class Measured(NamedTuple):
    """What was sampled: of every round, each subject's sample."""

    subjects: Mapping[str, Subject]
    rounds: Sequence[Mapping[str, Row]]

    def found(self) -> dict[str, Row]:
        """Each subject's facts, and medians, least and largest over the rounds.

        cpu_ms and wall_ms are of 1,000 tokens, tokens_per_second of wall time; without tokens cpu_s and wall_s are of
        a call. Where FLOPs are counted:
        gflops_per_cpu_s, and share, the part of the matmul rate of the same round. Whatever else timers saw is the
        median over rounds. Of MATMUL there is its rate alone.
        """
        return {name: self._row(name, subject) for name, subject in self.subjects.items()}

    def ratios(self, pairs: Mapping[str, tuple[str, str]]) -> dict[str, Row]:
        """How many times one subject's seconds a token another's are, round by round: median, least and largest.

        pairs: by name, two subjects, the first over the second. times_cpu is of CPU-seconds, times_wall of wall time.
        """
        found = {}
        for name, (over, under) in pairs.items():
            row: Row = {"over": over, "under": under}
            scale = (self.subjects[under].tokens or 1) / (self.subjects[over].tokens or 1)
            for clock in CLOCKS:
                row |= spread(
                    f"times_{clock}", [scale * each[over][clock] / each[under][clock] for each in self.rounds]
                )
            found[name] = row
        return found

    def _row(self, name: str, subject: Subject) -> Row:
        if name == MATMUL:
            return spread("gflops_per_cpu_s", self._rates(name))
        mine = [each[name] for each in self.rounds]
        row: Row = dict(subject.facts) | {"rounds": len(mine)}
        for clock in CLOCKS:
            if subject.tokens is None:
                row |= spread(f"{clock}_s", [each[clock] for each in mine])
            else:
                row |= spread(f"{clock}_ms", [1e6 * each[clock] / subject.tokens for each in mine])
        if subject.tokens is not None:
            row |= {"tokens": subject.tokens, "tokens_per_second": 1e6 / row["wall_ms"]}
        row |= {field: statistics.median(each[field] for each in mine) for field in mine[0] if field not in CLOCKS}
        if subject.flops is not None:
            rates = self._rates(name)
            row |= {"flops_per_token": subject.flops, "gflops_per_cpu_s": statistics.median(rates)}
            if MATMUL in self.subjects:
                row |= spread("share", [each / most for each, most in zip(rates, self._rates(MATMUL), strict=True)])
        return row

    def _rates(self, name: str) -> list[float]:
        work = (self.subjects[name].tokens or 1) * (self.subjects[name].flops or 0.0)
        return [work / each[name]["cpu"] / 1e9 for each in self.rounds]


def run(subjects: Mapping[str, Subject], rounds: int, rows: Rows, *, what: str, matmul: bool = True) -> Measured:
    """Sample every subject in each of so many rounds.

    Each sample is a row that is kept: after an interruption the others follow. Warm-up is no sample. With matmul, the
    rate of this machine's float32 matrix products is sampled in the same rounds.
    """
    every = ({MATMUL: matmul_subject()} if matmul else {}) | dict(subjects)
    samples = [(f"round {n}: {name}", name) for n in range(1, rounds + 1) for name in every]
    missing = [(row, name) for row, name in samples if row not in rows.rows]
    timers = {name: every[name].make for _, name in missing}
    with metrics.progress(len(timers) + len(missing), what) as bar:
        made = {}
        for name, make in timers.items():
            made[name] = make()
            bar.advance()
        for row, name in missing:
            rows.get(row, lambda name=name: dict(made[name]()))  # type: ignore[misc]
            bar.advance()
    return Measured(every, [{name: rows.rows[f"round {n}: {name}"] for name in every} for n in range(1, rounds + 1)])


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
    """SIZE x SIZE float32 matrices: what this machine's matrix products can do; a call is one product."""

    def make() -> Timer:
        a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE))
        return timer(done(functools.partial(jax.jit(jnp.matmul), a, b)))

    return Subject(make, None, {}, 2.0 * SIZE**3)


def _source() -> str:
    """A digest of this package's Python: rounds of two versions are not to be mixed."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
