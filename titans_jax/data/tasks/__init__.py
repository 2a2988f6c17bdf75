"""Made-up tasks with one right answer, as pure functions of a seed; `-style` names the work that a task follows.

- text, hidden in the corpus: passkey; RULER-style niah_single, niah_multikey, niah_multivalue,
  niah_multiquery and variables; BABILong-style babilong_person and babilong_thing.
- tokens: mqar, and mqar_16 with 16 keys and values; MAD-style in_context_recall, noisy_recall, selective_copy and
  memorisation; the formal languages parity, even ((aa)*), abab ((abab)*), counted (a^n b^n) and modular.

`data.task` selects one for training: rows of `data.sequence` targets, of which only the answer's count.
"""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from titans_jax.data.tasks import babilong, formal, recall, ruler
from titans_jax.data.tasks.base import Question, Row, TextTask, TokenTask, text_row
from titans_jax.data.tasks.passkey import passkey
from titans_jax.data.tokenizer import Tokenizer
from titans_jax.nearest import require_known

TEXT_TASKS: dict[str, TextTask] = {
    "passkey": passkey,
    "niah_single": ruler.numbers,
    "niah_multikey": partial(ruler.numbers, keys=4),
    "niah_multivalue": partial(ruler.numbers, values=3),
    "niah_multiquery": partial(ruler.numbers, keys=4, queries=2),
    "variables": ruler.variables,
    "babilong_person": babilong.person,
    "babilong_thing": babilong.thing,
}
TOKEN_TASKS: dict[str, TokenTask] = {
    "mqar": recall.mqar,
    "mqar_16": partial(recall.mqar, symbols=16),
    "in_context_recall": recall.in_context,
    "noisy_recall": partial(recall.in_context, noise=1 / 3),
    "selective_copy": recall.selective_copy,
    "memorisation": recall.memorised,
    "parity": formal.parity,
    "even": partial(formal.repeated, word=b"aa"),
    "abab": partial(formal.repeated, word=b"abab"),
    "counted": formal.counted,
    "modular": formal.modular,
}
TASKS = (*TEXT_TASKS, *TOKEN_TASKS)

__all__ = ["TASKS", "TEXT_TASKS", "TOKEN_TASKS", "Question", "Row", "TaskRows", "check_task", "question", "row"]


def check_task(name: str) -> str:
    """Returns the name of a task. Raises ValueError for any other."""
    require_known("data.task", name, TASKS)
    return name


def question(name: str, seed: int | tuple[int, ...], size: int, hay: str = "") -> Question:
    """Returns a question of a text task, of at most `size` characters.

    Raises ValueError: the name is not a text task, or the task does not fit.

    >>> asked = question("niah_single", 0, 120, hay="the sea and the sky ")
    >>> asked.question, asked.answer
    ('Which number has Tess?', ' 4804.')
    """
    if check_task(name) not in TEXT_TASKS:
        raise ValueError(f"{name} is a task of tokens and has no question; text tasks are {', '.join(TEXT_TASKS)}")
    return TEXT_TASKS[name](np.random.default_rng(seed), size, hay)


def row(name: str, seed: int | tuple[int, ...], length: int, tokenizer: Tokenizer, hay: str = "") -> Row:
    """Returns a row of a task, `length` tokens long; a text gets shorter until its tokens fit.

    Raises ValueError: the task is unknown, or does not fit.
    """
    if check_task(name) in TOKEN_TASKS:
        return TOKEN_TASKS[name](np.random.default_rng(seed), length)
    size, found = length, None
    while found is None:
        asked = question(name, seed, size, hay)
        found, size = text_row(asked, tokenizer, length), size - 8  # some letters take several tokens
    return found


class TaskRows:
    """A task's rows by number, like `batches.Loader` for a text: row i depends on i and held_out alone.

    Args:
      task: its name.
      length: targets per row.
      tokenizer, hay: for a text task.
      held_out: whether to give rows that training never sees.
    """

    def __init__(self, task: str, length: int, tokenizer: Tokenizer, hay: str, *, held_out: bool) -> None:
        self.task, self.length, self.tokenizer, self.hay = check_task(task), length, tokenizer, hay
        self.held_out = held_out
        self.rows = 1024 if held_out else 2**30

    def load(self, rows: ArrayLike) -> dict[str, NDArray]:
        """Returns the batch of these rows, as `batches.Loader.load` does, without resets."""
        side = int(self.held_out)
        examples = [row(self.task, (side, int(i)), self.length, self.tokenizer, self.hay) for i in np.asarray(rows)]
        inputs, targets, mask = (np.stack(field) for field in zip(*examples, strict=True))
        return {"inputs": inputs, "targets": targets, "mask": mask, "reset": np.zeros(inputs.shape, bool)}
