"""The words at a report's beginning are its numbers'."""

import pytest

from titans_jax.evaluation.findings import findings

PLACE = {"first": [0, 8], "last": [7, 11], "loss": [2.0, 1.5]}


@pytest.mark.parametrize(
    "losses, said",
    [
        (
            [0.25, None, 0.0625],
            "counts most in layer 0: without it there, the loss rises by 0.250 nats per token; "
            "by 0.062 without it in layer 2.",
        ),
        ([None, 0.5], "counts most in layer 1: without it there, the loss rises by 0.500 nats per token."),
        (
            [0.001, -0.002],
            "makes no difference: without it in any one layer, the loss rises by at most 0.001 nats per token.",
        ),
        ([-0.001], "makes no difference: without it in any one layer, the loss rises by at most 0.000 nats per token."),
    ],
)
def test_a_part_counts_where_its_loss_rises_most(losses, said):
    numbers = {"position_in_the_sequence": PLACE, "ablation": {"learning": {"divergence": losses, "loss": losses}}}
    first = "The first 8 tokens of a sequence cost 2.000 nats each, the last 4 1.500."
    assert findings(numbers) == f"{first} What the memory learns while it reads {said}"
