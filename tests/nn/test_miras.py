"""The laws of nn for rules whose link is not the identity, or that have an extra gate."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.nn import test_laws as laws
from tests.nn.members import config_of, subject

ROWS: dict[str, dict[str, Any]] = {
    "memora-mac": dict(block="mac", rule="memora", residual="both", chunk=4, persistent=3),
    "moneta-mal": dict(block="mal", rule="moneta", channel_keep=True, chunk=4, persistent=0),
    "yaad-mag": dict(block="mag", rule="yaad", chunk=8, persistent=3),
}
# A relative read is the difference of two reads that have most of their digits in common, and the norm behind it
# magnifies their rounding; memora's columns of one sum have most of theirs in common too. Three times what is seen.
TOLERANCE = {"memora": 8e-3, "yaad": 5e-4}


def streams(member: laws.Member) -> None:
    laws.streams(member, TOLERANCE.get(member.row["rule"], 1e-4))


def documents(member: laws.Member) -> None:
    laws.documents(member, TOLERANCE.get(member.row["rule"], 1e-4))


LAWS: dict[str, Callable[..., None]] = {
    "causal": laws.test_causality,
    "pieces": streams,
    "rows": laws.test_rows_do_not_mix_and_calls_repeat,
    "packed": documents,
}


@pytest.fixture(scope="module", params=ROWS)
def member(request: pytest.FixtureRequest) -> laws.Member:
    row = ROWS[request.param]
    return laws.Member(row, subject(config_of(row)))


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_law(member: laws.Member, law: str) -> None:
    LAWS[law](member)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    laws.test_every_parameter_has_a_gradient(ROWS[name])
