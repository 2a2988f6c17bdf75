"""The files of a finished run: result, sample and pictures; and the summary that is printed."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from titans_jax import data, files, metrics, plots, results
from titans_jax.checkpoint import Checkpoints
from titans_jax.config import Experiment
from titans_jax.decode import generate
from titans_jax.nn import LM
from titans_jax.training.recalled import Figures, lines
from titans_jax.waiting import waiting


def finish(
    experiment: Experiment,
    model: LM,
    tokenizer: data.Tokenizer,
    checkpoints: Checkpoints,
    measured: dict[str, Any],
    found: Figures | None = None,
) -> dict[str, Any]:
    """Write result.json, sample.txt and pictures, print the summary, return the result. found: facts recalled."""
    folder = experiment.output
    steps = [record for record in metrics.read_records(folder) if record["split"] == "train"]
    best = checkpoints.find("best")
    result = {
        **measured,
        "steps": steps[-1]["step"],
        "tokens_per_second": steps[-1]["tokens_per_second"],
        "parameters": metrics.count(nnx.split(model)[1]),
        "best_step": best,
        "best_bits_per_byte": checkpoints.meta(best)["evaluation"]["bits_per_byte"],
    }
    for name, row in (found or {}).items():
        key = name.replace(" ", "_")
        result |= {f"{key}_{length}_recalled": share for length, share in row["recalled"].items()}
        result[f"{key}_bits_per_byte"] = row["bits_per_byte"]
    with waiting("writing a sample and pictures"):
        text = sample(experiment, model, tokenizer)
        files.write(folder / "sample.txt", text)
        drawn = _draw(experiment, model, tokenizer)
        if found and plots.available():
            plots.recall_picture(found, folder / "recall.png")
            drawn.append("recall.png")
    results.write_result(folder, result)
    print(_summary(experiment, result, text, ["result.json", "metrics.jsonl", "sample.txt", *drawn]), flush=True)
    if found:
        print("\n".join(lines(found)), flush=True)
    return result


def sample(experiment: Experiment, model: LM, tokenizer: data.Tokenizer) -> str:
    """A continuation of train.prompt, drawn from the run's seed."""
    train = experiment.train
    prompt = tokenizer.encode(train.prompt) if train.prompt else np.array([tokenizer.separator])
    written = generate(model, prompt[None], length=train.sample, temperature=0.8, key=jax.random.key(train.seed))
    return train.prompt + tokenizer.decode(written[0])


def _draw(experiment: Experiment, model: LM, tokenizer: data.Tokenizer) -> list[str]:
    """The pictures' names; none without matplotlib."""
    if not plots.available():
        return []
    folder = experiment.output
    plots.loss_curve(metrics.read_records(folder), folder / "loss_curve.png")
    batch = next(data.held_out_batches(experiment.data, limit=1))
    info = _memory_info(*nnx.split(model), batch["inputs"][:1])
    if info is None:
        return ["loss_curve.png"]
    text = [tokenizer.decode([token]) for token in batch["inputs"][0]]
    plots.memory_picture(info, folder / "memory.png", text=text)
    return ["loss_curve.png", "memory.png"]


@jax.jit(static_argnums=0)
def _memory_info(graphdef: Any, params: Any, tokens: jax.Array) -> Any:
    """The memory's info on tokens [1, T], without the axis of the batch."""
    model = nnx.merge(graphdef, params)
    return jax.tree.map(lambda x: x[:, 0], model(tokens, model.init_state(1), aligned=True)[2])


def _summary(experiment: Experiment, result: dict[str, Any], sample: str, files: list[str]) -> str:
    shown = " ".join(sample.split())
    return "\n".join(
        [
            f"{experiment.name}: {result['steps']} steps, {result['tokens_per_second']:,.0f} tokens/s",
            f"  held-out   {result['bits_per_byte']:.4f} bits per byte, loss {result['loss']:.4f}, perplexity "
            f"{result['perplexity']:.3f}, accuracy {result['accuracy']:.4f}; best {result['best_bits_per_byte']:.4f} "
            f"at step {result['best_step']}",
            f"  sample     {shown[:200]}{'...' if len(shown) > 200 else ''}",
            f"  written    {experiment.output}/: checkpoints/, {', '.join(files)}",
        ]
    )
