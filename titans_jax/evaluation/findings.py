"""What the numbers of a report say, in words."""

from collections.abc import Mapping
from typing import Any

NOTHING = 0.005
"""The increase of the loss, in nats per token, below which a part makes no difference."""
PARTS = {
    "learning": "What the memory learns while it reads",
    "reading": "What is read from the memory",
    "context": "The memory's output in front of attention",
    "attention": "Attention",
}


def findings(numbers: Mapping[str, Any]) -> str:
    """Sentences on the loss along a sequence, and on the layers where each part of `ablation` counts."""
    place = numbers["position_in_the_sequence"]
    first, last = (place["last"][i] - place["first"][i] + 1 for i in (0, -1))
    sentences = [
        f"The first {first} tokens of a sequence cost {place['loss'][0]:.3f} nats each, the last {last} "
        f"{place['loss'][-1]:.3f}."
    ]
    for part, found in numbers["ablation"].items():
        costs = {layer: cost for layer, cost in enumerate(found["loss"]) if cost is not None}
        most, least = max(costs, key=costs.__getitem__), min(costs, key=costs.__getitem__)
        if costs[most] < NOTHING:
            sentences.append(
                f"{PARTS[part]} makes no difference: without it in any one layer, the loss rises by at most "
                f"{max(costs[most], 0):.3f} nats per token."
            )
            continue
        line = f"{PARTS[part]} counts most in layer {most}: without it there, the loss rises by {costs[most]:.3f} nats"
        less = f"; by {costs[least]:.3f} without it in layer {least}" if least != most else ""
        sentences.append(f"{line} per token{less}.")
    return " ".join(sentences)
