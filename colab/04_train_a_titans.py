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
# # Train a Titans
#
# You will see a language model whose layers hold a **memory that learns while it reads**, trained from nothing on
# Moby-Dick, byte by byte: its learning curve, what it writes, what its memory did over a page, and that what it carries
# from token to token is of one size however much it has read.
#
# It runs on whatever there is, TPU, GPU or CPU, and is cut down so that a CPU ends in a minute or two. What comes out
# after so few steps is no English; the cell with the sizes says what to raise.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # of titans_jax, if it is not installed: the checkout around this notebook, or "git+https://..."
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE, "matplotlib"], check=True)

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Image, display

from titans_jax import config, data, training
from titans_jax.decode import generate

print(jax.device_count(), "x", jax.devices()[0].device_kind)

# %% [markdown]
# ## The experiment
#
# A config of `configs/` is a value; every field can be changed, by the names that the command line has
# (`python train.py mini --train.steps 60`). `block="mac"` is memory as context: what the memory says about a segment is
# attended to together with the segment. Try `lmm` (memory alone), `mag` (memory as a gate), `mal` (memory as a layer),
# `transformer` (no memory).

# %%
folder = Path(tempfile.mkdtemp())  # a folder that outlasts the session lets the same cell go on after a disconnection
small = [
    *("--model.block", "mac", "--model.dim", "64", "--model.depth", "2", "--data.sequence", "128", "--data.batch", "4"),
    *("--train.steps", "60", "--train.eval-every", "20", "--train.eval-batches", "4", "--train.save-every", "60"),
    *("--train.log-every", "1", "--train.sample", "120", "--optim.warmup", "10", "--output-dir", str(folder)),
]
# On a GPU or a TPU raise, in place of what stands above: --model.dim 512 --model.depth 8 --model.heads 8
# --model.memory.head-dim 64 --data.sequence 1024 --data.batch 64 --train.steps 2000 --model.dtype bfloat16
# --data.corpus python; on several devices --mesh data=4,fsdp=2; or load("titans_170m") in place of load("mini").
experiment = config.override(config.load("mini"), small)
print(experiment.model)

# %% [markdown]
# ## Training
#
# The loop that `train.py` runs: compiled once, evaluated on text that is held out (each token is scored before anything
# learns from it), saved. Called again with the same folder, it goes on where it was.

# %%
result = training.run(experiment)

# %% [markdown]
# A byte drawn at random from all 256 costs 8 bits. How far below that is it?

# %%
display(Image(folder / "loss_curve.png"))
print(f"held out: {result['bits_per_byte']:.3f} bits per byte, accuracy {result['accuracy']:.1%}")

# %% [markdown]
# ## The memory at work
#
# Every layer's memory is a small network that takes a gradient step on each token. Its loss on a token *before* that
# step is the **surprise**; the picture has it over one held-out page, with the most surprising places written out.

# %%
display(Image(folder / "memory.png"))

# %% [markdown]
# A page read twice in one stream: the second time the memory has seen it. How much less surprised it then is, and
# whether the model predicts better, depends on how training has set the gates; after a minute of it, expect little.

# %%
_, model, step = training.load(folder)
page = next(data.held_out_batches(experiment.data, limit=1))["inputs"][:1, :64]
graphdef, params = nnx.split(model)


@jax.jit
def read(params, tokens):
    model = nnx.merge(graphdef, params)
    logits, _, look = model(tokens, model.init_state(1))
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    return look.surprise, nats[0, :, 0]


surprise, nats = read(params, np.concatenate([page, page], axis=1))
for name, part in (("first", slice(0, 63)), ("second", slice(64, 127))):
    said = f"surprise {surprise[..., part].mean():.3f}, loss {nats[part].mean():.3f} nats a byte"
    print(f"{name} reading: {said}")

# %% [markdown]
# ## What it writes
#
# The prompt is read, then one token at a time, each at the same cost.

# %%
prompt = np.frombuffer(b"CHAPTER", np.uint8)[None]
for temperature in (0.5, 1.0):
    written = generate(model, prompt, length=120, temperature=temperature, key=jax.random.key(0))[0]
    print(f"temperature {temperature}:", repr(bytes(written.astype(np.uint8)).decode(errors="replace")))

# %% [markdown]
# ## A state of one size
#
# The memory's weights, its momentum, and the segment being read: that is all it carries. Full attention keeps two
# vectors a token, layer and head.

# %%
size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: model.init_state(1))))
c = experiment.model
for tokens in (256, 4096, 65536):
    cache = tokens * c.depth * 2 * c.heads * c.head_dim * 4
    print(f"after {tokens:6,} tokens: this model {size:11,} bytes, full attention of its width {cache:11,} bytes")

# %% [markdown]
# ## Further
#
# - `titans-jax compare mac transformer lmm`: models side by side on the same batches, matched in parameters, over seeds
# - `titans-jax eval --checkpoint FOLDER`, `titans-jax generate --checkpoint FOLDER --prompt "Call me"`
# - `05_look_inside`: more of what a trained memory does
