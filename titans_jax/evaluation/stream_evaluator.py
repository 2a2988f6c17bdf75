"""A model reads a text of any size to its end: scores along the way, and a state on disk from which it resumes.

    folder/metrics.jsonl    one line per window: loss, bits per byte, accuracy, every layer's surprise
    folder/state/           the stream's state, the sums so far, and the position in the text

Interruptions do not change what is written.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from titans_jax import metrics
from titans_jax.checkpoint import CheckpointError, Checkpoints
from titans_jax.data import Position
from titans_jax.decode import streaming
from titans_jax.decode.streaming import Scores, StreamState
from titans_jax.nn import LM

Block = tuple[NDArray[np.int32], Position]


@dataclasses.dataclass
class Tally:
    """Sums over tokens. A token whose score or surprise is not finite is only counted."""

    tokens: int = 0
    bytes: int = 0
    nll: float = 0.0
    correct: int = 0
    surprise: list[float] = dataclasses.field(default_factory=list)
    non_finite: int = 0

    def add(self, tokens: NDArray[np.int32], scores: Scores, byte_lengths: NDArray[np.int32]) -> None:
        """Add a block's tokens [T] and their scores, of one row."""
        nll = np.asarray(scores.nll[0], np.float64)
        surprise = np.zeros((0, len(nll))) if scores.surprise is None else np.asarray(scores.surprise[:, 0], np.float64)
        finite = np.isfinite(nll) & np.isfinite(surprise).all(0)
        self.tokens += len(tokens)
        self.bytes += int(byte_lengths[tokens].sum())
        self.nll += float(nll[finite].sum())
        self.correct += int(scores.correct[0].sum())
        sums = surprise[:, finite].sum(1).tolist()
        self.surprise = [a + b for a, b in zip(self.surprise or [0.0] * len(sums), sums, strict=True)]
        self.non_finite += int((~finite).sum())

    def means(self) -> dict[str, float]:
        """loss, perplexity, bits_per_byte, accuracy, layer_0/surprise ...; all nan if a number was not finite."""
        found = metrics.summarise(self.nll, self.tokens, self.correct, self.bytes)
        found |= {f"layer_{i}/surprise": total / self.tokens for i, total in enumerate(self.surprise)}
        return {name: math.nan if self.non_finite else value for name, value in found.items()}


class StreamEvaluator:
    """Scores a model on one text, block by block, from the beginning or from where it was saved.

    total: the sums over the whole text so far.
    position: where in the text the next block begins.
    """

    def __init__(
        self, folder: Path, model: LM, start: StreamState, byte_lengths: NDArray[np.int32], settings: Mapping[str, Any]
    ) -> None:
        """Resume what the folder has; otherwise begin there with the state `start`.

        Args:
          folder: for metrics.jsonl and state/.
          start: the stream's first state.
          byte_lengths: [vocab], of the tokenizer.
          settings: what the scores depend on, as JSON: "segment", tokens read at once; "window", tokens per line of
            metrics.jsonl; "from", the stream that `start` is from, if any; and more.

        Raises ValueError: the folder has other settings. Raises CheckpointError: its state cannot be used.
        """
        self.folder, self.model, self.byte_lengths = folder, model, byte_lengths
        self.settings = {**settings, "model": fingerprint(model)}
        self.state, self.total, self.window, self.position = start, Tally(), Tally(), Position()
        self.checkpoints = Checkpoints(folder / "state", keep=1)
        if self.checkpoints.steps():
            self._restore()
            self.log = metrics.Log(folder, step=self.total.tokens)
        else:
            self.log = metrics.Log(folder)
            self.save()

    def evaluate(self, blocks: Iterable[Block], *, save_every: int) -> Iterator[tuple[int, int]]:
        """Score blocks of settings["segment"] tokens (the last may be shorter); yields tokens and bytes of each.

        The state is saved every `save_every` tokens and at the end; call `save` between two blocks to stop there.
        Raises FloatingPointError where the state to save is not finite.
        """
        for tokens, position in blocks:
            scores, before = self._read(tokens), dataclasses.replace(self.total)
            for tally in (self.total, self.window):
                tally.add(tokens, scores, self.byte_lengths)
            self.position = position
            if self.window.tokens >= self.settings["window"]:
                self._write()
            if self.total.tokens // save_every > before.tokens // save_every:
                self.save()
            yield len(tokens), self.total.bytes - before.bytes
        if self.window.tokens:
            self._write()
        self.save()

    def compile(self) -> None:
        """Compile what reading needs: whole blocks, and single tokens for the last one."""
        spare, segment = streaming.fork(self.state), self.settings["segment"]
        for width in (segment, segment, 1):  # twice: a returned state may be committed to a device, a first one is not
            tokens = np.zeros((1, width), np.int32)
            spare, _ = streaming.read(self.model, spare, tokens, aligned=self._aligned(width))
        jax.block_until_ready(spare)

    def save(self) -> None:
        """Save the state, the sums and the position, unless this step is saved already."""
        step = self.total.tokens
        if step in self.checkpoints.steps():
            return
        meta = {name: dataclasses.asdict(getattr(self, name)) for name in ("position", "total", "window")}
        self.checkpoints.save(step, {"stream": self.state}, meta=meta | {"settings": self.settings})

    def _aligned(self, width: int) -> bool:
        """Whether the tokens read so far are a multiple of `width`; the text of another stream may end anywhere."""
        segment = self.settings["segment"]
        return width == segment and self.total.tokens % segment == 0 and not self.settings.get("from")

    def _read(self, tokens: NDArray[np.int32]) -> Scores:
        width = len(tokens) if len(tokens) == self.settings["segment"] else 1
        parts = []
        for part in np.split(tokens, len(tokens) // width):
            self.state, scores = streaming.read(self.model, self.state, part[None], aligned=self._aligned(width))
            parts.append(scores)
        return jax.tree.map(lambda *x: np.concatenate(x, -1), *jax.device_get(parts))

    def _write(self) -> None:
        self.log.write(self.total.tokens, "stream", {"bytes": self.total.bytes} | self.window.means())
        self.window = Tally()

    def _restore(self) -> None:
        saved = self.checkpoints.meta()
        for name, value in self.settings.items():
            if (theirs := saved["settings"].get(name)) != value:
                raise ValueError(
                    f"{self.folder} holds a stream with {name} {theirs}, not {value}; "
                    "give another --output-dir, or --no-resume to start over"
                )
        self.state = self.checkpoints.restore({"stream": self.state})[0]["stream"]
        self.total, self.window = Tally(**saved["total"]), Tally(**saved["window"])
        self.position = Position(**saved["position"])


def load_state(folder: Path, model: LM, like: StreamState) -> StreamState:
    """The newest state that a stream of this model saved in its folder; `like` is any state of it.

    Raises CheckpointError if there is none; ValueError if another model read the stream.
    """
    if not (folder / "state").is_dir():
        raise CheckpointError(f"{folder} is not the folder of a stream: it has no state/")
    checkpoints = Checkpoints(folder / "state")
    theirs, ours = checkpoints.meta()["settings"]["model"], fingerprint(model)
    if theirs != ours:
        raise ValueError(f"{folder} holds the state of another model: {theirs[:12]}, and this one is {ours[:12]}")
    return checkpoints.restore({"stream": like})[0]["stream"]


def fingerprint(model: LM) -> str:
    """sha256 of a model's configuration and parameters."""
    digest = hashlib.sha256(repr(model.config).encode())
    for leaf in jax.tree.leaves(nnx.split(model)[1]):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def curves(folder: Path, points: int = 1000) -> dict[str, list[float | None]]:
    """The columns of metrics.jsonl by name, averaged over stretches so that each has at most `points` values.

    "tokens" is where each stretch ends. A stretch with a number that was not finite has None. The file is read line by
    line, twice.
    """
    path = folder / "metrics.jsonl"
    with path.open(encoding="utf-8") as lines:
        each = -(-sum(1 for _ in lines) // points)
    found: dict[str, list[float | None]] = {}
    with path.open(encoding="utf-8") as lines:
        records = (json.loads(line) for line in lines)
        for stretch in iter(lambda: [record for _, record in zip(range(each), records, strict=False)], []):
            found.setdefault("tokens", []).append(stretch[-1]["step"])
            for name in stretch[0].keys() - {"step", "split", "bytes"}:
                values = [record[name] for record in stretch]
                found.setdefault(name, []).append(None if None in values else sum(values) / len(values))
    return found
