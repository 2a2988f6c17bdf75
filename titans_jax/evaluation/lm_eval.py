"""EleutherAI's lm-evaluation-harness on a model: an adapter for its three requests, and our tasks in its format.

Needs lm-eval, the optional extra `eval`. Contexts are never truncated: full attention raises an error where they do not
fit.
"""

import contextlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_jax import files
from titans_jax.data import Tokenizer
from titans_jax.data.tasks import question
from titans_jax.decode import NotFinite, Text, generate
from titans_jax.evaluation.loglikelihood import endings, no_room, score_targets
from titans_jax.nn import LM

BATCH, GRID = 16, 64


def write_tasks(folder: Path, names: Sequence[str], *, size: int, count: int, hay: str = "") -> list[str]:
    """Write text tasks of `data.tasks` as lm-eval tasks, NAME.yaml and NAME.jsonl each; returns lm-eval's names.

    lm-eval scores the answer's log-likelihood (perplexity) and whether greedy decoding gives it (acc).

    Args:
      size: characters of a question with its text.
      count: questions per task. Question i has seed (2, i), which no training or held-out row has.
      hay: text to hide the facts in.

    Raises ValueError: a name is not a text task, or the size is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        questions = [question(name, (2, i), size, hay) for i in range(count)]
        lines = [json.dumps({"text": q.context + q.question, "answer": q.answer}) + "\n" for q in questions]
        files.write(folder / f"{name}.jsonl", "".join(lines))
        task = {
            "task": f"titans_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str((folder / f"{name}.jsonl").resolve())}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        }
        files.write_json(folder / f"{name}.yaml", task)  # JSON is YAML
    return [f"titans_{name}" for name in names]


def run_tasks(model: LM, tokenizer: Tokenizer, folder: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Run lm-eval tasks, its own or those of a folder of YAML files; returns numbers by task and metric.

    lm-eval's own tasks download their data. Raises ImportError where lm-eval is not installed, ValueError for an
    unknown task.
    """
    adapter = adapter_class()(model, tokenizer)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ValueError(f"unknown task {', '.join(unknown)}: neither lm-eval nor {folder} has it")
    found = simple_evaluate(adapter, tasks=list(names), task_manager=manager, bootstrap_iters=0, log_samples=False)
    return {
        task: {key.partition(",")[0]: value for key, value in numbers.items() if isinstance(value, int | float)}
        for task, numbers in found["results"].items()
    }


@cache
def adapter_class() -> Any:
    """The class of lm-eval models, `(model, tokenizer)`; raises ImportError where lm-eval is not installed."""
    try:
        from lm_eval.api.model import LM as Base
    except ImportError:
        raise ImportError("the command needs lm-eval: pip install titans-jax[eval]") from None

    class Adapter(Base):
        """A titans_jax model behind lm-eval's interface."""

        def __init__(self, model: LM, tokenizer: Tokenizer) -> None:
            super().__init__()
            self.model, self.own_tokenizer = model, tokenizer

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """log p of each continuation after its context, and whether greedy decoding gives it."""
            rows = [_row(self.own_tokenizer, *request.args) for request in requests]
            return _scores(self.model, rows, self.own_tokenizer.separator)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """log p of each whole text."""
            rows = [_row(self.own_tokenizer, "", request.args[0]) for request in requests]
            return [value for value, _ in _scores(self.model, rows, self.own_tokenizer.separator)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Greedy decoding after each context, up to the first of its stop texts."""
            return [_continuation(self.model, self.own_tokenizer, *request.args) for request in requests]

    return Adapter


def _row(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[NDArray, int]:
    """Separator, context and continuation as tokens, and how many of the last ones to score."""
    before = len(tokenizer.encode(context)) if context else 0
    tokens = tokenizer.encode(context + continuation)
    return np.concatenate([[tokenizer.separator], tokens]).astype(np.int32), len(tokens) - before


def _scores(model: LM, rows: list[tuple[NDArray, int]], filler: int) -> list[tuple[float, bool]]:
    """Scores of rows, in batches of similar length; filler is behind everything that is scored."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), BATCH):
        members = order[start : start + BATCH]
        longest = max(len(rows[i][0]) for i in members)
        length = longest + (1 - longest) % GRID
        if no_room(model, length - 1):  # it may fit without filler
            length = longest
        tokens, mask = endings([rows[i] for i in members], filler, length)
        scores = score_targets(model, tokens[:, :-1], tokens[:, 1:], mask)
        found |= {i: (float(scores.log_likelihood[line]), bool(scores.exact[line])) for line, i in enumerate(members)}
    return [found[i] for i in range(len(rows))]


def _continuation(model: LM, tokenizer: Tokenizer, context: str, options: dict[str, Any]) -> str:
    if options.get("do_sample") or options.get("temperature"):
        raise ValueError(f"generate_until decodes greedily; lm-eval asked for {options}")
    until = options.get("until") or []
    text = Text(tokenizer.decode, [until] if isinstance(until, str) else until)
    prompt = np.concatenate([[tokenizer.separator], tokenizer.encode(context)])

    def stop(row: int, token: int) -> bool:
        text.add(token)
        return text.ended

    with contextlib.suppress(NotFinite):  # what was written before is the answer
        generate(model, prompt[None], length=options.get("max_gen_toks", 128), temperature=0, stop=stop)
    text.finish()
    return text.shown
