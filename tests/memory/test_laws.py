"""Laws 1 to 9 for every member and implementation. `pytest -k "gated_deltanet and causal"` picks some."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from tests.laws import (
    FAST_CHANNELS,
    LAWS,
    MEMBERS,
    SAME,
    any_split,
    close,
    equal_to_recurrent,
    in_fast_lane,
)
from tests.memory.situations import TOKENS, Member, pieced, results, row, situations

SERVED = [(member, name) for member in MEMBERS if member.row not in SAME for name in member.implementations]
MATMULS = [(member, name) for member, name in SERVED if name != "recurrent"]


# Of the law that compiles anew, for other lengths, the fast lane has each engine, link and window once.
QUICK_SPLITS = {"titans": ("chunked", "recurrent"), "swla": ("chunked", "recurrent"), "gated_deltanet": ("exact",)}
QUICK_SPLITS |= {"ttt_linear": ("chunked",), "memora": ("chunked",), "dgd_linear": ("delta",)}


def quick(law: Any, member: Member, implementation: str) -> bool:
    """Whether it is in the fast lane."""
    if law is any_split:
        return implementation in QUICK_SPLITS.get(member.name, ())
    return in_fast_lane(member)


def params(pairs: Any, law: Any = None) -> list[Any]:
    def marks(member: Member, implementation: str) -> Any:
        return () if law and quick(law, member, implementation) else pytest.mark.slow

    name = law.__name__ + "-" if law else ""
    first = (law,) if law else ()
    return [pytest.param(*first, m, i, id=f"{name}{m.name}-{i}", marks=marks(m, i)) for m, i in pairs]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# Of the rows that are no preset, those whose state holds something more: their streams are tried in pieces too.
PIECED = ("titans_to_origin", "titans_order2", "titans_linear_window", "titans_linear_fresh", "titans_elastic", "muon")


def served(law: Any) -> list[Any]:
    """Whom a law is tried on. Pieces compile anew; a keep per channel takes the same path in them as any other."""
    if law is not any_split:
        return SERVED
    return [(m, i) for m, i in SERVED if (m.row in FAST_CHANNELS if m.channel else m.preset or m.row in PIECED)]


@pytest.mark.parametrize("law, member, implementation", [p for law in LAWS for p in params(served(law), law)])
def test_law(law: Any, member: Member, implementation: str) -> None:
    law(member, implementation)


FLOAT32 = [(m, i) for m, i in MATMULS if m.name in ("titans", "gated_deltanet-channel")]


@pytest.mark.parametrize("member, implementation", FLOAT32, ids=[m.name for m, _ in FLOAT32])
def test_float32_to_its_precision(member: Member, implementation: str) -> None:
    equal_to_recurrent(member, implementation, gradients=True, dtype="float32")


SCALAR_PRESETS = [(m, i) for m, i in MATMULS if m.preset and not m.channel]
EACH_ENGINE = [(m, i) for m, i in SCALAR_PRESETS if m.row in ("titans", "memora", "gated_deltanet", "dgd_linear")]


@pytest.mark.parametrize("member, implementation", params(pair for pair in SCALAR_PRESETS if pair not in FLOAT32))
def test_float32_of_every_preset(member: Member, implementation: str) -> None:
    equal_to_recurrent(member, implementation, dtype="float32")


@pytest.mark.parametrize("member, implementation", params([(m, i) for m, i in MATMULS if not m.gradients]))
def test_gradients_of_a_variant_of_the_fast_lane(member: Member, implementation: str) -> None:
    equal_to_recurrent(member, implementation, gradients=True)


@pytest.mark.parametrize("tokens, chunk", [(13, 1), (1, 4), (3, 8), (8, 4), (25, 6)], ids=str)
@pytest.mark.parametrize("member, implementation", params(EACH_ENGINE))
def test_any_length_in_any_chunk(member: Member, implementation: str, tokens: int, chunk: int) -> None:
    equal_to_recurrent(member, implementation, gradients=chunk == 1, tokens=tokens, chunk=chunk)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_splits(seed: int) -> None:
    member = next(m for m in MEMBERS if m.name == "titans_linear")
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, TOKENS), size=rng.integers(1, TOKENS), replace=False))
    lengths = np.diff([0, *cuts, TOKENS])
    case = situations(member, seed=seed)
    y, state, _, _ = results(member, "chunked", case)
    got = pieced(member, "chunked", "chunked", row(case, 5), lengths)
    close(got, row((y, state), 5), 1e-9, f"{lengths}")
