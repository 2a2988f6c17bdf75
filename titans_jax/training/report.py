"""The files of a finished run: result, sample and pictures; and the summary that is printed."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from titans_jax import data, files, metrics, plots, results, sharding
from titans_jax.checkpoint import Checkpoints
from titans_jax.compiling import ONCE
from titans_jax.config import Experiment
from titans_jax.decode import NotFinite, generate
from titans_jax.nn import LM
from titans_jax.training.counts import CHIPS, flops_per_token
from titans_jax.training.recalled import Figures, lines
from titans_jax.training.session import note


def finish(
    experiment: Experiment,
    model: LM,
    tokenizer: data.Tokenizer,
    checkpoints: Checkpoints,
    measured: dict[str, Any],
    found: Figures | None = None,
) -> dict[str, Any]:
    """Write result.json, sample.txt and pictures, print the summary, return the result. found: facts recalled.

    Every process of a run takes part in what the model computes and what orbax reads; others than the main one return
    `measured`.
    """
    with metrics.waiting("writing a sample"):
        text, inside = sample(experiment, model, tokenizer), _look_inside(experiment, model)
    best = checkpoints.find("best")
    best_score = checkpoints.meta(best)["evaluation"]["bits_per_byte"]
    if not metrics.is_main():
        return measured
    folder = experiment.output
    records = metrics.read_records(folder)
    steps, times = ([record for record in records if record["split"] == split] for split in ("train", "time"))
    result = {
        **measured,
        "steps": experiment.train.steps,
        "tokens_per_second": steps[-1]["tokens_per_second"] if steps else 0.0,  # the log may be lost
        "parameters": metrics.count(nnx.split(model)[1]),
        "best_step": best,
        "best_bits_per_byte": best_score,
        **_times(experiment, times[-1] if times else {}),
    }
    for name, row in (found or {}).items():
        key = name.replace(" ", "_")
        result |= {f"{key}_{length}_recalled": share for length, share in row["recalled"].items()}
        result[f"{key}_bits_per_byte"] = row["bits_per_byte"]
    with metrics.waiting("drawing pictures"):
        files.write(folder / "sample.txt", text)
        drawn = _draw(experiment, inside, tokenizer)
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
    try:
        written = generate(model, prompt[None], length=train.sample, temperature=0.8, key=jax.random.key(train.seed))
    except NotFinite as error:  # the run is finished all the same
        note(f"the sample ends early: {error}")
        written = error.written
    return train.prompt + tokenizer.decode(written[0][written[0] >= 0])


def _look_inside(experiment: Experiment, model: LM) -> tuple[np.ndarray, Any]:
    """Tokens of held-out text [T], and the memory's info on them; None without matplotlib, or without a memory."""
    tokens = next(data.held_out_batches(experiment.data, limit=1))["inputs"][:1]
    return tokens[0], _memory_info(*nnx.split(model), tokens) if plots.available() else None


def _draw(experiment: Experiment, inside: tuple[np.ndarray, Any], tokenizer: data.Tokenizer) -> list[str]:
    """The pictures' names; none without matplotlib."""
    if not plots.available():
        return []
    folder, (tokens, info) = experiment.output, inside
    plots.loss_curve(metrics.read_records(folder), folder / "loss_curve.png")
    if info is None:
        return ["loss_curve.png"]
    plots.memory_picture(info, folder / "memory.png", text=[tokenizer.decode([token]) for token in tokens])
    return ["loss_curve.png", "memory.png"]


@jax.jit(static_argnums=0, compiler_options=ONCE)
def _memory_info(graphdef: Any, params: Any, tokens: jax.Array) -> Any:
    """The memory's info on tokens [1, T], without the axis of the batch."""
    model = nnx.merge(graphdef, params)
    info = model(tokens, model.init_state(1), aligned=True)[2]
    return jax.tree.map(lambda x: sharding.constrain(x[:, 0]), info)


def _times(experiment: Experiment, record: Mapping[str, Any]) -> dict[str, float]:
    """The times of the log's record, and `mfu` of the median step where the device's figures are known."""
    times = {name: value for name, value in record.items() if name not in ("step", "split")}
    chip = CHIPS.get(jax.devices()[0].device_kind)
    if not times or chip is None:
        return times
    source = experiment.data
    flops = flops_per_token(experiment.model, source.sequence, least=True) * source.batch * source.sequence
    return times | {"mfu": flops / (times["step_p50_seconds"] * chip.flops * jax.device_count())}


def _time_line(result: Mapping[str, Any]) -> str:
    others = ", ".join(f"{what} {result[f'{what}_seconds']:.1f} s" for what in ("compile", "data", "evaluate", "save"))
    step = f"a step {result['step_p50_seconds']:.3g} s, 95 of 100 at most {result['step_p95_seconds']:.3g} s"
    mfu = f", MFU {result['mfu']:.1%}" if "mfu" in result else ""
    return f"  time       {step}{mfu}; steps are {result['goodput']:.0%}: {others}"


def _summary(experiment: Experiment, result: dict[str, Any], sample: str, files: list[str]) -> str:
    shown = " ".join(sample.split())
    return "\n".join(
        [
            f"{experiment.name}: {result['steps']} steps, {result['tokens_per_second']:,.0f} tokens/s",
            f"  held-out   {result['bits_per_byte']:.4f} bits per byte, loss {result['loss']:.4f}, perplexity "
            f"{result['perplexity']:.3f}, accuracy {result['accuracy']:.4f}; best {result['best_bits_per_byte']:.4f} "
            f"at step {result['best_step']}",
            *([_time_line(result)] if "goodput" in result else []),
            f"  sample     {shown[:200]}{'...' if len(shown) > 200 else ''}",
            f"  written    {experiment.output}/: checkpoints/, {', '.join(files)}",
        ]
    )
