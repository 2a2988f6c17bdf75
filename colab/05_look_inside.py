# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside a trained model
#
# A model with a memory as context reads a page of Moby-Dick, one letter after another. You will see:
#
# 1. what every attention head looked at, and how the heads and the layers differ;
# 2. what the memories did with every letter: surprise, update, gates, and what their weights became;
# 3. the memories themselves, before and after the page;
# 4. what it costs to do without a part of a layer;
# 5. attention and memory while the model writes, as a moving picture.
#
# The model is trained first, for a minute; if there is a run in `outputs/tiny`, that one is taken. It needs no network,
# unless titans_jax has to be installed.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # of titans_jax, if it is not installed: the checkout around this notebook, or "git+https://..."
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE, "matplotlib"], check=True)

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
# Any run's output folder will do. This one is small: two layers of 64, 100 steps of 512 bytes.

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
# `read` goes through a text token by token, as generation does, and keeps what is to be seen. The model itself knows
# nothing of being watched. Attention is linear in the values it reads, so the derivative of what it gives by a value is
# the weight with which that value was read.

# %%
batch = next(data.held_out_batches(replace(experiment.data, sequence=128, batch=8), limit=1))
tokens = batch["inputs"][0]
letters = [tokenizer.decode([int(token)]) for token in tokens]
reading = read(model, tokens.tolist())
print("".join(letters))
print("weights on tokens, [layers, heads, token, how far back]:", reading.attention.tokens.shape)
print("surprise, [layers, memories, token]:", reading.memory.look.surprise.shape)

# %% [markdown]
# ## What attention looked at
#
# Row by row, what each letter read. In MAC a token attends to the tokens of its segment (blue) and to what the memory
# gave for them (orange): a memory is a context beside the text. The squares are segments.

# %%
maps = {"tokens": square(reading.attention.tokens), "memory": square(reading.attention.read)}
plots.attention_maps(maps, folder / "attention.png")
Image(folder / "attention.png", width=1000)

# %% [markdown]
# The last layer, large enough to read, on the last letters of the page.

# %%
near = {name: weights[-1][:, -32:, -32:] for name, weights in maps.items()}
plots.head_grid(near, letters[-32:], folder / "heads.png", layer=len(maps["tokens"]) - 1)
Image(folder / "heads.png", width=1000)

# %% [markdown]
# How do the heads differ? `distance` is how far back their weight lies, `reach` how many things they read at once (the
# exponential of the entropy), the rest are shares of the weight.

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
# ## What the memories did
#
# Surprise is the memory's own loss on a letter before it is written. The gates say what is done about it: the rate of
# the step, how much of the last step goes on (momentum), how much is not forgotten (keep). All of them are learned.

# %%
seen = reading.memory
strips = {
    "Surprise": seen.look.surprise,
    "Update: norm of what the token changed": seen.change,
    "Rate": seen.look.rate,
    "Momentum": seen.look.momentum,
    "Keep": seen.look.keep,
}
plots.memory_activity(strips, folder / "activity.png")
Image(folder / "activity.png", width=1000)

# %% [markdown]
# Is more written where the surprise is larger? And what have the weights become: how far did they go, and is what they
# learned a few directions (a low effective rank) or many?

# %%
plots.memory_updates(
    seen.look.surprise.mean(1), seen.change.mean(1), reading.ends, learned(reading), folder / "updates.png"
)
Image(folder / "updates.png", width=1000)

# %% [markdown]
# ## The memories themselves
#
# Each memory is a network of two matrices. Left as they are after the page, right what the page has changed.

# %%
plots.memory_state(reading.weights[0], reading.weights[-1], folder / "state.png")
Image(folder / "state.png", width=1000)

# %%
norms = {"attention keys": reading.attention.key, "memory keys": seen.key, "memory values": seen.value}
plots.norms(norms, folder / "norms.png")
Image(folder / "norms.png", width=1000)

# %% [markdown]
# ## What matters
#
# One part of one layer is cut out, and the rest reads on. `learning` is the question of this library: what does it cost
# if the memory stays as it began? A layer of MAC of which the memory is not read is one of attention inside segments;
# without attention, it is a memory that is written with the layer's input.

# %%
costs = ablate(model, batch)
for cut, numbers in costs.items():
    loss = "  ".join(f"{cost:+.4f}" for cost in numbers["loss"])
    print(f"without {cut:<10} loss by layer {loss}   ({CUTS[cut]})")
plots.ablation_bars(costs, folder / "ablation.png")
Image(folder / "ablation.png", width=1000)

# %% [markdown]
# ## While it writes
#
# Every picture is one letter. Blue behind the text is what the model read to write it; the orange line is what it read
# from its memory.

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
    memory={"Surprise": reading.memory.look.surprise.mean(1)},
)
Image(folder / "generation.gif", width=1000)

# %% [markdown]
# All of this, for any checkpoint, in one page: `titans-jax eval --checkpoint outputs/tiny`, then open
# `outputs/tiny/eval/report.html`.
