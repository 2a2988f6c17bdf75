"""Laws 1 to 9 for every member and implementation. `pytest -k "gated_deltanet and causal"` picks some."""

from collections.abc import Iterator

import jax
import pytest

from tests.laws import LAWS, MEMBERS, Member, any_split, equal_to_recurrent

SERVED = [(member, name) for member in MEMBERS for name in member.implementations]
ENGINES = [(member, name) for member, name in SERVED if name != "recurrent"]
PRESETS_SERVED = [(member, name) for member, name in ENGINES if member.preset and not member.channel]


def seconds(member: Member, law) -> bool:
    """What the fast lane can pay for: the rest compiles for minutes and says little more."""
    if law is equal_to_recurrent or member.preset:
        return member.preset or not member.channel
    return law is not any_split and not member.channel


def params(pairs, law=None):
    def marks(member: Member):
        return () if law is None or seconds(member, law) else pytest.mark.slow

    return [pytest.param(m, i, id=f"{m.name}-{i}", marks=marks(m)) for m, i in pairs]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "law, member, implementation",
    [
        pytest.param(law, *p.values, id=f"{law.__name__}-{p.id}", marks=p.marks)
        for law in LAWS
        for p in params(SERVED, law)
    ],
)
def test_law(law, member: Member, implementation: str) -> None:
    law(member, implementation)
