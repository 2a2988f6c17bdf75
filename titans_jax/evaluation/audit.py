"""Does a memory remember? Checks of a trained model, each with the number that decides it.

A fact stands beyond the reach of attention, and is asked for at the end of the text. Between text and question the
state is changed: the memory is emptied, or swapped with the one of another text. The answers are generated, token by
token, and compared whole.
"""

import math
from collections.abc import Mapping
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from numpy.typing import NDArray

from titans_jax.decode import first_state, prefill
from titans_jax.decode.rows import copied
from titans_jax.decode.slots import batch_axes
from titans_jax.evaluation.ablation import frozen
from titans_jax.evaluation.facts import Facts
from titans_jax.evaluation.probe import Probe, can_probe, probe
from titans_jax.nn import LM
from titans_jax.nn.attention import KV
from titans_jax.nn.model import LMState

PIECE = 100  # tokens of a piece, where a text is read in pieces
SAME = 0.01  # nats: the largest difference of log probabilities that counts as the same
WORTH = 0.01  # nats a token: the least gain on a text that counts
RIGHT = 0.5  # the least share of right answers that counts as remembering


class Check(NamedTuple):
    """A line of an audit.

    name: what is measured.
    value: the number, with its `unit`.
    wanted: what it has to be, in words.
    passed: whether it is; None where nothing can be said.
    """

    name: str
    value: float | None
    unit: str
    wanted: str
    passed: bool | None

    @property
    def shown(self) -> str:
        """The number and its unit."""
        if self.value is None:
            return "not measured"
        return f"{self.value:.0%}" if self.unit.startswith("of ") else f"{self.value:.4g} {self.unit}"


def reach(model: LM) -> float:
    """How many tokens back attention and convolutions carry anything at most, over all layers; inf if full."""
    config = model.config
    if config.grows:
        return math.inf
    attention = max(0, *(block.view - 1 for block in model.blocks))
    convolution = config.memory.conv - 1 if config.memory.conv and config.pattern != ("transformer",) else 0
    return config.depth * (attention + convolution)


def recall_checks(model: LM, facts: Facts, chance: float) -> list[Check]:
    """Answers with the memory as it is, and changed; chance: of guessing an answer. Needs two texts or more."""
    cold = frozen(model)
    start = first_state(*nnx.split(model), len(facts.answers))
    read, control = (prefill(model, tokens)[1] for tokens in (facts.texts, facts.controls))
    unlearned = prefill(cold, facts.texts, state=copied(start))[1]
    other = _exchanged(model, read, _next_row(model, read))
    theirs = np.roll(facts.answers, -1, 0)
    cases: Mapping[str, tuple[LM, Any, NDArray[np.int32], bool]] = {
        "the fact, memory on": (model, read, facts.answers, True),
        "the fact, where the text does not have it": (model, control, facts.answers, False),
        "the fact, memory frozen": (cold, unlearned, facts.answers, False),
        "the fact, memory emptied before the question": (model, _exchanged(model, read, start), facts.answers, False),
        "the fact, with another text's memory": (model, other, facts.answers, False),
        "the other text's fact, with its memory": (model, other, theirs, True),
    }
    guessed = chance + 3 * math.sqrt(chance * (1 - chance) / len(facts.answers))
    checks = []
    for name, (asked, state, answers, known) in cases.items():
        written = _answer(*nnx.split(asked), copied(state), facts.question, answers.shape)
        share = float((np.asarray(written) == answers).all(1).mean())
        wanted = f"at least {RIGHT:.0%}" if known else f"at most {guessed:.0%}"
        checks.append(Check(name, share, "of answers", wanted, share >= RIGHT if known else share <= guessed))
    return checks


def probe_checks(model: LM, facts: Facts) -> list[Check]:
    """Whether the fact is in a memory, and whether the question finds it there: the best head of each."""
    if not can_probe(model):
        return []
    found, heads = probe(model, facts), model.config.depth * model.config.memory.heads
    wanted = 0.5 + NormalDist().inv_cdf(1 - 0.001 / heads) * math.sqrt(0.25 / len(facts.texts))
    checks = []
    for name, shares in found._asdict().items():
        if shares is None:
            checks.append(Check(f"the fact {name} in a memory", None, "", "the fact has not the answer's tokens", None))
            continue
        layer, head = np.unravel_index(np.nanargmax(shares), shares.shape)
        best = float(shares[layer, head])
        title = f"the fact {name} in a memory (layer {layer + 1}, head {head + 1})"
        checks.append(Check(title, best, "of texts", f"at least {wanted:.0%}", best >= wanted))
    return checks


def text_checks(model: LM, batch: Mapping[str, Any]) -> list[Check]:
    """Causality, one text for every way of reading, and the memory's worth on held-out text.

    batch: as from `data.held_out_batches`, at least two rows.
    """
    tokens = np.asarray(batch["inputs"])
    half = tokens.shape[1] // 2
    changed = np.concatenate([tokens[:, :half], (tokens[:, half:] + 1) % model.config.vocab_size], 1)
    whole, other = (_scores(model, x, x.shape[1]) for x in (tokens, changed))
    differ = int((whole[:, :half] != other[:, :half]).sum())
    checks = [Check("scores changed by later tokens", differ, "scores", "0", differ == 0)]
    for name, size in (("one call and pieces", PIECE), ("one call and single tokens", 1)):
        most = float(np.abs(whole - _scores(model, tokens, size)).max())
        checks.append(Check(f"difference between {name}", most, "nats", f"at most {SAME}", most <= SAME))
    cold = _scores(frozen(model), tokens, tokens.shape[1], start=model)
    picked = np.asarray(batch["targets"])[..., None]
    gain = np.take_along_axis(whole - cold, picked, -1)[..., 0] * batch["mask"]
    rows = gain.sum(1) / np.maximum(batch["mask"].sum(1), 1)
    mean, error = float(rows.mean()), float(rows.std(ddof=1) / len(rows) ** 0.5)
    wanted = f"at least {WORTH}, and 3 standard errors ({3 * error:.2g})"
    checks.append(Check("gain on text by learning", mean, "nats a token", wanted, mean >= max(WORTH, 3 * error)))
    return checks


def verdict(checks: list[Check]) -> str:
    """What an audit found, in a sentence."""
    sound = all(check.passed for check in checks if check.unit in ("scores", "nats"))
    (gain,) = (check for check in checks if check.unit == "nats a token")
    recalls = [check for check in checks if check.unit == "of answers"]
    parts = ["causal, and the same however it reads" if sound else "the scores depend on how the text is read"]
    if recalls:
        share = f"its memory recalls {recalls[0].shown} of the facts"
        parts.append(share if all(check.passed for check in recalls) else _failed(checks))
    parts.append(f"learning is worth {gain.shown} of text" if gain.passed else "learning adds nothing on text")
    return "; ".join(parts)


def _failed(checks: list[Check]) -> str:
    """That the facts are not recalled, and how far they came."""
    shares = (check.shown for check in checks if check.unit == "of texts")
    way = ", ".join(f"{name} in {share} of texts" for name, share in zip(Probe._fields, shares, strict=False))
    return "its memory does not recall the facts" + f" ({way})" * bool(way)


def _exchanged(model: LM, state: Any, other: Any) -> Any:
    """A state with another's memories. Caches of attention, ages and steps stay."""

    def memory(own: Any, new: Any, axis: Any) -> Any:
        return own if isinstance(own, KV) or axis < 0 else new

    def aged(new: Any, own: Any) -> Any:
        return new._replace(age=own.age) if isinstance(new, LMState) else new

    mixed = jax.tree.map(memory, state, other, batch_axes(*nnx.split(model)), is_leaf=lambda x: isinstance(x, KV))
    return jax.tree.map(aged, mixed, state, is_leaf=lambda x: isinstance(x, LMState))


def _next_row(model: LM, state: Any) -> Any:
    """The state in which row i is row i + 1."""

    def rolled(x: Array, axis: int) -> Array:
        return x if axis < 0 else jnp.roll(x, -1, axis)

    return jax.tree.map(rolled, state, batch_axes(*nnx.split(model)))


@partial(jax.jit, static_argnums=(0, 4))
def _answer(graphdef: Any, params: Any, state: Any, question: Array, shape: tuple[int, int]) -> Array:
    """The likeliest tokens after the question, one after the other, int32 [B, A] = shape."""
    model, (batch, count) = nnx.merge(graphdef, params), shape

    def step(carry: tuple[Any, Array], forced: Array) -> tuple[tuple[Any, Array], Array]:
        state, token = carry
        logits, state, _ = model(jnp.where(forced < 0, token, forced)[:, None], state)
        token = logits[:, -1].argmax(-1).astype(jnp.int32)
        return (state, token), token

    forced = jnp.concatenate([question, jnp.full(count - 1, -1, jnp.int32)])
    return lax.scan(step, (state, jnp.zeros(batch, jnp.int32)), forced)[1][-count:].T


def _scores(model: LM, tokens: NDArray[np.int32], size: int, *, start: LM | None = None) -> NDArray[np.float32]:
    """Log probabilities [B, T, V] after each token, read `size` tokens at a time from the first state of `start`."""
    graphdef, params = nnx.split(model)
    state = first_state(*nnx.split(start or model), len(tokens))
    found = []
    for first in range(0, tokens.shape[1], size):
        scores, state = _piece(graphdef, params, state, tokens[:, first : first + size])
        found.append(np.asarray(scores))
    return np.concatenate(found, 1)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _piece(graphdef: Any, params: Any, state: Any, tokens: Array) -> tuple[Array, Any]:
    logits, state, _ = nnx.merge(graphdef, params)(tokens, state)
    return jax.nn.log_softmax(logits), state
