# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside a trained model
#
# A model with memory as context (MAC) reads a page of Moby-Dick, byte by byte. You will see:
#
# 1. the attention weights of every head, and how heads and layers differ;
# 2. surprise, update, gates and weights of the memories at every letter;
# 3. the weights of the memories, before and after the page;
# 4. ablations: the loss without a part of a layer;
# 5. an animation of attention and memory during generation.
#
# It trains a model first, for a minute, or uses the run in `outputs/tiny` if there is one. It needs no network, unless
# titans_jax must be installed first.

# %%
# Where titans_jax is missing, as in Colab, this installs it. A jax that is new enough stays as it is.
import importlib.util
import subprocess
import sys

SOURCE = "git+https://github.com/OWNER/titans_jax"
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"titans-jax[plot] @ {SOURCE}"], check=True)

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from IPython.display import Image

from titans_jax import config, data, plots, training
from titans_jax.decode import generate
from titans_jax.evaluation import CUTS, ablate, read
from titans_jax.evaluation.statistics import head_numbers, learned, square

folder = Path(tempfile.mkdtemp())
print("jax", jax.__version__, "on", jax.devices()[0].device_kind, "- pictures in", folder)

# %% [markdown]
# ## A model
#
# Any run's output folder works. This model is small: two layers of width 64, trained for 100 steps of 512 bytes.

# %%
run = Path("outputs/tiny")
if not (run / "checkpoints").is_dir():
    run = folder / "run"
    small = config.load("mini")
    small = replace(
        small,
        output_dir=str(run),
        data=replace(small.data, sequence=128),
        train=replace(small.train, steps=100, eval_every=50, eval_batches=4, save_every=100, sample=0),
    )
    training.run(small)
experiment, model, step = training.load(run)
tokenizer = data.load_tokenizer(experiment.data.tokenizer)
print(experiment.name, "after", step, "steps")

# %% [markdown]
# ## Reading
#
# `read` reads a text token by token, as generation does, and records attention and memories. The model's forward pass
# does no extra work. Attention is linear in the values, so the weight of a value is the derivative of the output with
# respect to it.

# %%
batch = next(data.held_out_batches(replace(experiment.data, sequence=128, batch=8), limit=1))
tokens = batch["inputs"][0]
letters = [tokenizer.decode([int(token)]) for token in tokens]
reading = read(model, tokens.tolist())
print("".join(letters))
print("weights on tokens, [layers, heads, token, how far back]:", reading.attention.tokens.shape)
print("surprise, [layers, memories, token]:", reading.memory.info.surprise.shape)

# %% [markdown]
# ## Attention
#
# Each row has the attention weights of a letter. In MAC a token attends to the tokens of its segment (blue) and to the
# memory's reads for them (orange). The squares are segments.

# %%
maps = {"tokens": square(reading.attention.tokens), "memory": square(reading.attention.read)}
plots.attention_maps(maps, folder / "attention.png")
Image(folder / "attention.png", width=1000)

# %% [markdown]
# The last layer on the last letters of the page, enlarged.

# %%
near = {name: weights[-1][:, -32:, -32:] for name, weights in maps.items()}
plots.head_grid(near, letters[-32:], folder / "heads.png", layer=len(maps["tokens"]) - 1)
Image(folder / "heads.png", width=1000)

# %% [markdown]
# How do the heads differ? `distance` is the mean distance of the weight in tokens, `reach` the effective number of
# tokens (the exponential of the entropy); the others are shares of the weight.

# %%
heads = head_numbers(reading.attention)
plots.head_comparison(heads, folder / "head_comparison.png")
Image(folder / "head_comparison.png", width=1000)

# %%
far = {"tokens": reading.attention.tokens.mean((1, 2)), "memory": reading.attention.read.mean((1, 2))}
shares = {name: weights.sum(-1) for name, weights in far.items()} | {"persistent": heads["persistent"].mean(1)}
plots.layer_analysis(far, shares, heads["reach"], folder / "layers.png")
Image(folder / "layers.png", width=1000)

# %% [markdown]
# ## The memories' updates
#
# Surprise is the memory's loss on a letter before the write. The gates are the rate of the step, the momentum, and
# keep, which is one minus the forgetting. All gates are learned.

# %%
seen = reading.memory
strips = {
    "Surprise": seen.info.surprise,
    "Update: norm of what the token changed": seen.change,
    "Rate": seen.info.rate,
    "Momentum": seen.info.momentum,
    "Keep": seen.info.keep,
}
plots.memory_activity(strips, folder / "activity.png")
Image(folder / "activity.png", width=1000)

# %% [markdown]
# Are writes larger if the surprise is larger? How far did the weights move, and is their change of low or high
# effective rank?

# %%
plots.memory_updates(
    seen.info.surprise.mean(1), seen.change.mean(1), reading.ends, learned(reading), folder / "updates.png"
)
Image(folder / "updates.png", width=1000)

# %% [markdown]
# ## The memories' weights
#
# Each memory is a network of two matrices. Left: the matrices after the page. Right: their change over the page.

# %%
plots.memory_state(reading.weights[0], reading.weights[-1], folder / "state.png")
Image(folder / "state.png", width=1000)

# %%
key, value = (np.linalg.norm(x, axis=-1) for x in (seen.key, seen.value))
norms = {"attention keys": reading.attention.key, "memory keys": key, "memory values": value}
plots.norms(norms, folder / "norms.png")
Image(folder / "norms.png", width=1000)

# %% [markdown]
# ## Ablations
#
# The loss after the removal of one part of one layer. `learning` keeps the memory's initial weights. A MAC layer
# without reads of the memory is attention inside segments; without attention, it is a memory written with the layer's
# input.

# %%
costs = ablate(model, batch)
for cut, numbers in costs.items():
    loss = "  ".join(f"{cost:+.4f}" for cost in numbers["loss"])
    print(f"without {cut:<10} loss by layer {loss}   ({CUTS[cut]})")
plots.ablation_bars(costs, folder / "ablation.png")
Image(folder / "ablation.png", width=1000)

# %% [markdown]
# ## Generation
#
# Each frame is one letter. Blue shows the attention weights on the text, the orange line the weights on the memory's
# reads.

# %%
prompt = tokens[:64]
written = generate(model, prompt[None], length=32, temperature=0.8, key=jax.random.key(0))[0]
both = np.concatenate([prompt, written])
reading = read(model, both.tolist())
plots.generation(
    [tokenizer.decode([int(token)]) for token in both],
    folder / "generation.gif",
    prompt=len(prompt),
    attention={"tokens": square(reading.attention.tokens), "memory": square(reading.attention.read)},
    memory={"Surprise": reading.memory.info.surprise.mean(1)},
)
Image(folder / "generation.gif", width=1000)

# %% [markdown]
# `titans-jax eval --checkpoint outputs/tiny` writes all of this for any checkpoint to
# `outputs/tiny/eval/report.html`.
