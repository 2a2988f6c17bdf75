"""`titans-jax generate`: text from a checkpoint."""

import argparse
import contextlib
import json
import time
from dataclasses import asdict

import jax
import numpy as np

from titans_jax import data, files, metrics, results, training
from titans_jax.cli.options import checkpoint_options, load, output, path, positive, seed
from titans_jax.decode import NotFinite, Sampling, Text, generate


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: prompts, lengths and sampling."""
    checkpoint_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", action="append", help="text to continue; repeatable; without it, a new document")
    prompt.add_argument("--prompt-file", type=path, help="UTF-8 file with the text to continue")
    prompt.add_argument("--prompts", type=path, metavar="FILE", help="UTF-8 file with one prompt per line")
    parser.add_argument("--length", type=positive, default=256, help="tokens to generate (default 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    parser.add_argument("--top-k", type=int, help="sample from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="sample from the fewest tokens whose probabilities reach this sum")
    parser.add_argument("--min-p", type=float, help="sample from tokens of at least this share of the best probability")
    parser.add_argument("--seed", type=seed, default=0, help="equal seeds give equal text (default 0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--batch", type=positive, default=1, help="samples of each prompt (default 1)")
    parser.add_argument("--slots", type=positive, default=16, help="samples generated at once (default 16)")


def run(options: argparse.Namespace) -> None:
    """Continue a prompt with a checkpoint; a single sample is printed token by token."""
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    prompts = [prompt for prompt in _prompts(options) for _ in range(options.batch)]
    folder = output(options, "generate")
    experiment, model, step = load(options.checkpoint, options)
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    rows = [tokenizer.encode(prompt) if prompt else np.array([tokenizer.separator], np.int32) for prompt in prompts]
    texts = [Text(tokenizer.decode, options.stop) for _ in rows]
    alone = len(rows) == 1
    times: list[float] = []
    with training.memory_advice(), contextlib.ExitStack() as stack:
        total, shown = (1, "compiling") if alone else (options.length * len(rows), "generate")
        bar = stack.enter_context(metrics.Progress(total, shown))

        def stop(row: int, token: int) -> bool:
            first = not times
            times.append(time.perf_counter())
            piece = texts[row].add(token)
            if not alone:
                bar.advance(1, tokens=1)
            elif first:
                bar.advance()
                stack.close()  # ends the bar's line before the text
                print(prompts[0] + piece, end="", flush=True)
            else:
                print(piece, end="", flush=True)
            return texts[row].ended

        key = jax.random.key(options.seed)
        lost: NotFinite | None = None
        try:
            generate(model, rows, length=options.length, **asdict(sampling), key=key, stop=stop, slots=options.slots)
        except NotFinite as error:  # what was written is kept
            lost = error
    rest = [text.finish() for text in texts]
    samples = [prompt + text.shown for prompt, text in zip(prompts, texts, strict=True)]
    print(rest[0] if alone else "\n".join(f"--- {i}\n{sample}" for i, sample in enumerate(samples)))
    files.write(folder / "samples.json", json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    files.write(folder / "samples.txt", "\n\n".join(samples) + "\n")
    # The clock starts at the first token, after prefill and compilation.
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9) if times else 0.0
    result = {"samples": len(rows), "tokens": len(times), "tokens_per_second": rate, "seed": options.seed}
    result["slots"] = min(options.slots, len(rows))
    result |= {**asdict(sampling), "checkpoint": str(options.checkpoint), "step": step}
    results.write_result(folder, result)
    if lost is not None:
        raise lost


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.prompts:
        lines = (line.removesuffix("\r") for line in data.read_text(options.prompts).split("\n"))
        if not (prompts := [line for line in lines if line]):
            raise ValueError(f"{options.prompts}: the file has no prompt; write one per line")
        return prompts
    if not all(map(data.is_text, options.prompt or ())):
        raise ValueError("--prompt: not UTF-8 text")
    return options.prompt or [data.read_text(options.prompt_file) if options.prompt_file else ""]
