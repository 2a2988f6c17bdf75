"""From a token stream to batches. The rows are laid out in advance, so any batch can be made from its number.

Batch k depends on (config, seed, k) alone, and each host makes its rows of it. So the state of the data is a number.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from numpy.typing import ArrayLike, NDArray

from titans_jax.data.facts import tell
from titans_jax.data.streams import TokenStream
from titans_jax.data.synthetic import check_seed
from titans_jax.data.tasks import TaskRows
from titans_jax.data.text import DataConfig, held_out_stream, load_sides, load_streams
from titans_jax.data.tokenizer import Tokenizer, load_tokenizer

_OPEN_ROWS = 256

Batch = dict[str, NDArray]


class Layout(NamedTuple):
    """How the targets of a stream are divided: pieces of the stream, in rows.

    Attributes:
      begin: int64 [P], the piece's first input in the stream.
      length: int64 [P], its number of targets.
      column: int64 [P], where in the row it starts.
      first: int64 [R + 1], row r is the pieces first[r] .. first[r + 1] - 1.
    """

    begin: NDArray[np.int64]
    length: NDArray[np.int64]
    column: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """The number of rows, R."""
        return len(self.first) - 1


def stream_layout(targets: int, sequence: int) -> Layout:
    """Cuts a stream into rows of `sequence` targets, the last one shorter: every target once, in order."""
    begin = np.arange(0, targets, sequence)
    return Layout(begin, np.minimum(sequence, targets - begin), np.zeros_like(begin), np.arange(len(begin) + 1))


def document_layout(starts: NDArray[np.int64], sequence: int, align: int = 1) -> Layout:
    """Packs documents first-fit into rows: every target once, no piece across two documents.

    A document of more than `sequence` targets is cut into pieces. Each piece goes to the first open row with room for
    it, at a multiple of `align`. At most 256 rows are open, so that the time is linear: the oldest closes first.

    Args:
      starts: [n + 1], where the separators are, as `TokenStream.starts`.
      sequence: targets per row, a multiple of align.
      align: pieces start at multiples of it.
    """
    pieces: list[tuple[int, int, int, int]] = []  # row, column, begin, length
    free = np.full(_OPEN_ROWS, sequence)
    oldest = 0  # free[i] is the room in row oldest + i
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for begin in range(start, end, sequence):
            length = min(sequence, end - begin)
            room = -(-length // align) * align
            fits = free >= room
            if not fits.any():
                free = np.append(free[1:], sequence)
                oldest += 1
                index = _OPEN_ROWS - 1
            else:
                index = int(fits.argmax())
            pieces.append((oldest + index, sequence - int(free[index]), begin, length))
            free[index] -= room
    row, column, begin_, length_ = np.asarray(sorted(pieces), np.int64).T
    return Layout(begin_, length_, column, np.searchsorted(row, np.arange(row[-1] + 2)))


class Loader:
    """Makes batches of a stream's rows; a pickle leaves the tokens on disk.

    Args:
      stream: the tokens.
      config: sequence, packing, align and facts.
      tokenizer: None for rows as they are; else config.facts of the rows tell a fact.
    """

    def __init__(self, stream: TokenStream, config: DataConfig, tokenizer: Tokenizer | None = None) -> None:
        """Lays out the rows."""
        self.stream, self.sequence, self.resets = stream, config.sequence, config.packing == "documents"
        if self.resets:
            self.layout = document_layout(stream.starts, config.sequence, config.align)
        else:
            self.layout = stream_layout(len(stream.tokens) - 1, config.sequence)
        self.rows = self.layout.rows
        self.facts, self.tokenizer = config.facts, tokenizer if config.facts else None

    def load(self, rows: ArrayLike) -> Batch:
        """Returns the batch of these rows; a row number past the last one gives padding.

        Returns: inputs, targets int32 [b, T]; mask float32 [b, T], 0 on padding (whose tokens are separators), 1
        elsewhere, and `facts.WEIGHT` on what a row has told before; reset bool [b, T], True where a packed document (or
        a piece of one) starts.
        """
        rows = np.asarray(rows)
        shape = (len(rows), self.sequence)
        inputs = np.full(shape, self.stream.separator, np.int32)
        targets, mask, reset = inputs.copy(), np.zeros(shape, np.float32), np.zeros(shape, bool)
        for i, row in enumerate(rows):
            if row >= self.rows:
                continue
            for piece in range(self.layout.first[row], self.layout.first[row + 1]):
                begin, length, column = (field[piece] for field in self.layout[:3])
                tokens, span = self.stream.tokens[begin : begin + length + 1], slice(column, column + length)
                inputs[i, span], targets[i, span], mask[i, span] = tokens[:-1], tokens[1:], 1
                reset[i, column] = self.resets
            is_whole = self.layout.length[self.layout.first[row]] == self.sequence
            if self.tokenizer is None or not is_whole:
                continue
            rng = np.random.default_rng((row, 1))
            if rng.uniform() < self.facts:
                tokens, mask[i] = tell(np.append(inputs[i], targets[i, -1]), self.tokenizer, rng)
                inputs[i], targets[i] = tokens[:-1], tokens[1:]
        return {"inputs": inputs, "targets": targets, "mask": mask, "reset": reset}


def train_batches(
    config: DataConfig, *, seed: int, start: int = 0, rows: ArrayLike | None = None
) -> grain.DatasetIterator[Batch]:
    """Returns an endless iterator of training batches.

    Every epoch has all rows once, in a new order; a batch may span two epochs.

    Args:
      config: which text, and how it becomes batches.
      seed: of the order of the rows, in [0, 2**32).
      start: the number of the first batch, to go on after as many.
      rows: the rows of each batch to make, such as those of this host; None for all.

    Returns: an iterator of dicts as `Loader.load` makes, [number of rows, config.sequence] each.
    Raises ValueError: as `load_streams`; start, rows or seed out of range; rows longer than the text.
    """
    check_seed("seed", seed)
    if start < 0:
        raise ValueError(f"start={start} must be 0 or more batches")
    mine = np.arange(config.batch) if rows is None else np.asarray(rows)
    if not ((mine >= 0) & (mine < config.batch)).all():
        raise ValueError(f"rows={mine.tolist()} must be rows of a batch of data.batch={config.batch}")
    loader = _loader(config, held_out=False)
    order = grain.MapDataset.range(loader.rows).seed(seed).shuffle().repeat()
    # drop_remainder: there is none, but without it grain counts 2**63 batches of one row and fails.
    batches = order.batch(config.batch, drop_remainder=True).map(lambda numbers: loader.load(numbers[mine]))
    # No threads: making a batch costs less than passing it between them.
    dataset = batches[start:].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if config.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags, which only absl programs parse
        processes = grain.MultiprocessingOptions(num_workers=config.workers)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_end_with_parent)
    return iter(dataset)


def _end_with_parent(index: int, workers: int) -> None:
    """End this worker when its parent has ended, as by SIGKILL; Python then frees the shared memory of both."""

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def steps_an_epoch(config: DataConfig) -> int:
    """The number of training batches per epoch. Raises ValueError as `load_streams`, and for a task."""
    if config.task:
        raise ValueError(f"data.task={config.task}: a task has endless rows and no epochs; give train.steps")
    return -(-_loader(config, held_out=False).rows // config.batch)


def held_out_batches(config: DataConfig, *, limit: int | None = None) -> Iterator[Batch]:
    """Returns the batches of the held-out text, in order: each target has mask 1 once over all batches.

    Row j reads the j-th part of the text, and continues in the next batch. So an evaluation may reset at every batch,
    or carry the state and read each part as one long text.

    Args:
      config: as for training; equal corpus, held_out and split make the two disjoint.
      limit: the most batches; None for all.

    Raises ValueError: nothing is held out, or limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1, or None for all held-out text")
    loader = _loader(config, held_out=True)
    steps = -(-loader.rows // config.batch)
    rows = np.arange(config.batch) * steps
    return (loader.load(rows + step) for step in range(min(steps, limit or steps)))


def _loader(config: DataConfig, *, held_out: bool) -> Loader | TaskRows:
    if config.task:
        train, test = load_sides(config)
        hay = "\n".join(test if held_out and test else train)
        return TaskRows(config.task, config.sequence, load_tokenizer(config.tokenizer), hay, held_out=held_out)
    if not held_out:
        stream, _, tokenizer = load_streams(config)
        if config.packing == "stream" and len(stream.tokens) <= config.sequence:
            most = len(stream.tokens) - 1
            raise ValueError(f"data.sequence={config.sequence}: the training text has rows of {most} tokens at most")
        return Loader(stream, config, tokenizer)
    if (own := held_out_stream(config)) is None:
        raise ValueError("data.held_out=0: there is no held-out text to evaluate on")
    return Loader(own, config)
