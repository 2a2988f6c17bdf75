"""lm-evaluation-harness (EleutherAI) over a model: its three questions, and tasks of ours as files it reads.

Needs lm-eval, the optional extra `eval`. Contexts are never cut: a memory reads them all, full attention refuses.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_jax.data import Tokenizer
from titans_jax.data.tasks import question
from titans_jax.decode import Text, generate
from titans_jax.evaluation.answers import endings, no_room, score_answers
from titans_jax.nn import LM

BATCH, GRID = 16, 64


def write_tasks(folder: Path, names: Sequence[str], *, size: int, count: int, hay: str = "") -> list[str]:
    """Write text tasks of `data.tasks` as lm-eval tasks, NAME.yaml and NAME.jsonl each; returns lm-eval's names.

    size: characters of a question with its text. count: questions of a task; number i is of seed (2, i), which training
    and held-out rows never are. Scored is the answer's log-likelihood (perplexity) and whether it is the greedy one
    (acc). Raises ValueError for a name that is no text task, or a size that is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        made = [question(name, (2, i), size, hay) for i in range(count)]
        lines = [json.dumps({"text": q.context + q.question, "answer": q.answer}) + "\n" for q in made]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        described = {
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
        (folder / f"{name}.yaml").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return [f"titans_{name}" for name in names]


def run_tasks(model: LM, tokenizer: Tokenizer, folder: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Run lm-eval tasks, those of a folder of YAML files among them; its numbers by task and metric.

    Tasks that come with lm-eval fetch their data from a network. Raises ImportError where lm-eval is not installed,
    ValueError for a name that is no task.
    """
    adapter = harness_class()(model, tokenizer)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ValueError(f"lm-eval has no task {', '.join(unknown)}, and {folder} describes none")
    found = simple_evaluate(adapter, tasks=list(names), task_manager=manager, bootstrap_iters=0, log_samples=False)
    return {
        task: {key.partition(",")[0]: value for key, value in numbers.items() if isinstance(value, int | float)}
        for task, numbers in found["results"].items()
    }


@cache
def harness_class() -> Any:
    """The class of lm-eval models, `(model, tokenizer)`; raises ImportError where lm-eval is not installed."""
    try:
        from lm_eval.api.model import LM as Base
    except ImportError:
        raise ImportError("the harness needs lm-eval: pip install titans-jax[eval]") from None

    class Harness(Base):
        """A titans_jax model as lm-eval asks it."""

        def __init__(self, model: LM, tokenizer: Tokenizer) -> None:
            super().__init__()
            self.model, self.own_tokenizer = model, tokenizer

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """log p of each continuation after its context, and whether greedy decoding gives it."""
            rows = [_row(self.own_tokenizer, *request.args) for request in requests]
            return _scored(self.model, rows, self.own_tokenizer.separator)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """log p of each text from its beginning."""
            rows = [_row(self.own_tokenizer, "", request.args[0]) for request in requests]
            return [value for value, _ in _scored(self.model, rows, self.own_tokenizer.separator)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """What greedy decoding writes after each context, up to the first of its stop texts."""
            return [_written(self.model, self.own_tokenizer, *request.args) for request in requests]

    return Harness


def _row(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[NDArray, int]:
    """Separator, context and continuation as tokens, and how many of the last ones are scored."""
    before = len(tokenizer.encode(context)) if context else 0
    tokens = tokenizer.encode(context + continuation)
    return np.concatenate([[tokenizer.separator], tokens]).astype(np.int32), len(tokens) - before


def _scored(model: LM, rows: list[tuple[NDArray, int]], filler: int) -> list[tuple[float, bool]]:
    """The rows in batches of about one length; filler comes after all that is scored."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    answers: dict[int, tuple[float, bool]] = {}
    for begin in range(0, len(order), BATCH):
        members = order[begin : begin + BATCH]
        longest = max(len(rows[i][0]) for i in members)
        length = longest + (1 - longest) % GRID
        if no_room(model, length - 1):  # perhaps without filler
            length = longest
        tokens, mask = endings([rows[i] for i in members], filler, length)
        scores = score_answers(model, tokens[:, :-1], tokens[:, 1:], mask)
        answers |= {i: (float(scores.log_likelihood[line]), bool(scores.exact[line])) for line, i in enumerate(members)}
    return [answers[i] for i in range(len(rows))]


def _written(model: LM, tokenizer: Tokenizer, context: str, options: dict[str, Any]) -> str:
    if options.get("do_sample") or options.get("temperature"):
        raise ValueError(f"generate_until is greedy here; lm-eval asked for {options}")
    until = options.get("until") or []
    text = Text(tokenizer.decode, [until] if isinstance(until, str) else until)
    prompt = np.concatenate([[tokenizer.separator], tokenizer.encode(context)])

    def heard(row: int, token: int) -> bool:
        text.add(token)
        return text.ended

    generate(model, prompt[None], length=options.get("max_gen_toks", 128), temperature=0, stop=heard)
    text.finish()
    return text.shown
