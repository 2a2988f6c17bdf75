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
# # Quickstart: a network that learns while it reads
#
# You will see:
#
# 1. a memory that learns a wave in front of you, is surprised when the wave changes, and learns the new one;
# 2. a memory as a layer of your own network, in three lines;
# 3. a small language model that is told a key, reads a page, and still knows the key; with its memory frozen it does
#    not.
#
# Nothing is trained before: the language model comes with the package. It takes two minutes on a CPU, most of them
# compiling.

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
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from IPython.display import Image

from titans_jax import MemoryLayer, data, training
from titans_jax.decode import generate
from titans_jax.evaluation.ablation import frozen
from titans_jax.plots import memory_picture
from titans_jax.series import draw_learning

folder = Path(tempfile.mkdtemp())
print("jax", jax.__version__, "on", jax.devices()[0].device_kind)

# %% [markdown]
# ## A memory learns
#
# The memory is a network of two layers. At each step it predicts the next value of a wave, and takes one step along
# the gradient of its error, the *surprise*. At step 150 the wave changes.

# %%
record = draw_learning(folder / "memory_learns.png")
Image(folder / "memory_learns.png", width=900)

# %%
surprise = np.asarray(record.surprise)
before, shift, end = surprise[130:150].mean(), surprise[150:170].mean(), surprise[-20:].mean()
print(f"mean surprise before the change {before:.3f}, after it {shift:.3f}, at the end {end:.3f}")
assert before < shift / 3 and end < shift / 3

# %% [markdown]
# ## A layer
#
# A `MemoryLayer` writes every token into its memory and reads after it. The memory is an argument and a result, so a
# sequence can be read in pieces of any length.

# %%
layer = MemoryLayer(dim=64, rule="titans", chunk=16, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (2, 100, 64))
y, state = layer(x[:, :60])
rest, state = layer(x[:, 60:], state)

whole, _ = layer(x)
print("outputs", whole.shape, "- largest difference to reading in two pieces:", float(abs(whole[:, 60:] - rest).max()))

# %% [markdown]
# ## A language model that remembers
#
# The model has 1.1 million parameters and four layers, which see 130 bytes back by attention and convolution, 520 in
# all. It was trained in three minutes on two cores, on Moby-Dick with keys told in the text. Now it is told a key and
# reads a page of a chapter that was held out.

# %%
experiment, model, _ = training.load(training.RELEASED)
tokenizer = data.load_tokenizer(experiment.data.tokenizer)
_, held_out = data.load_sides(experiment.data)
page = " ".join(held_out)[2_000:3_000]
prompt = f"The key: 729. {page}\nThe key:"
print(len(prompt), "bytes:", prompt[:200], "...", prompt[-120:])


# %%
def answer(model, prompt):
    rows = generate(model, [tokenizer.encode(prompt)], length=4, temperature=0)
    return tokenizer.decode(rows[0])


print("with its memory:       ", answer(model, prompt))
print("with its memory frozen:", answer(frozen(model), prompt))
assert answer(model, prompt) == " 729"

# %% [markdown]
# Another key, the same page: the answer comes from what was read, not from the weights.

# %%
for key in (153, 486, 912):
    print(key, "->", answer(model, prompt.replace("729", str(key))))

# %% [markdown]
# What the memories do with the first 256 bytes. Marks are the bytes that surprise them most; the norm of the fast
# weights changes with every chunk of 64 bytes that is written.

# %%
start = prompt[:256]
tokens = tokenizer.encode(start)
read = jax.jit(lambda model, tokens: model(tokens)[2])
memory_picture(jax.tree.map(lambda x: x[:, 0], read(model, tokens[None])), folder / "memory.png", list(start))
Image(folder / "memory.png", width=1000)

# %% [markdown]
# ## What next
#
# - `01_memory_and_surprise`: how a memory reads series, and what momentum and forgetting do.
# - `04_train_a_titans`: train a model of your own. `06_audit`: check whether a model's memory remembers.
# - `titans_jax/memory/README.md`: the equations, and a rule of your own in two lines.
