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
# # Train a Titans
#
# A language model whose layers have a **memory that learns while it reads** is trained on the bytes of Moby-Dick. You
# will see its learning curve, a sample, its memory on a page, and the fixed size of its state.
#
# It runs on a TPU, GPU or CPU. The sizes are small, so that a CPU needs a minute or two; after so few steps the samples
# are not English. The cell with the sizes lists larger ones.

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
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Image, display

from titans_jax import config, data, training
from titans_jax.decode import generate

print(jax.device_count(), "x", jax.devices()[0].device_kind)

# %% [markdown]
# The line above is the hardware that jax found. In Colab, *Runtime*, *Change runtime type* offers a GPU or a TPU; the
# first cell keeps the jax that Colab has for it.
#
# - **GPU**: nothing else changes. `--model.dtype bfloat16` makes matrix products faster (a T4 has `float16`).
# - **TPU**: `bfloat16`, heads of 128 and chunks of 128 fill its matrix units. With 8 devices add `--mesh data=8`; the
#   batch must divide by 8.
# - On both, the sizes below are too small to keep the hardware busy: most of the time is compiling. Take the larger
#   sizes. This notebook was run on CPUs only.

# %% [markdown]
# ## The experiment
#
# A config of `configs/` is a dataclass. Its fields have the names of the command line (`python train.py mini
# --train.steps 60`). `block="mac"` is memory as context: a segment attends to itself and to what is read from the
# memory. Others are `lmm` (memory alone), `mag` (memory as a gate), `mal` (memory as a layer), `transformer`.

# %%
folder = Path(tempfile.mkdtemp())  # with a permanent folder, the same cell resumes the run in a later session
small = [
    *("--model.block", "mac", "--model.dim", "64", "--model.depth", "2", "--data.sequence", "128", "--data.batch", "4"),
    *("--train.steps", "60", "--train.eval-every", "20", "--train.eval-batches", "4", "--train.save-every", "60"),
    *("--train.log-every", "1", "--train.sample", "120", "--optim.warmup", "10", "--output-dir", str(folder)),
]
# Larger sizes for a GPU or TPU: --model.dim 512 --model.depth 8 --model.heads 8
# --model.memory.head-dim 64 --data.sequence 1024 --data.batch 64 --train.steps 2000 --model.dtype bfloat16
# --data.corpus python; on several devices --mesh data=4,fsdp=2; or load("titans_170m") instead of load("mini").
experiment = config.override(config.load("mini"), small)
print(experiment.model)

# %% [markdown]
# ## Training
#
# This is the training loop of `train.py`, with evaluation on held-out text (each token is scored before the memory
# learns from it) and checkpoints. Called again with the same folder, it resumes.

# %%
result = training.run(experiment)

# %% [markdown]
# A uniform distribution over 256 bytes costs 8 bits per byte.

# %%
display(Image(folder / "loss_curve.png"))
print(f"held out: {result['bits_per_byte']:.3f} bits per byte, accuracy {result['accuracy']:.1%}")

# %% [markdown]
# ## The memory at work
#
# Each layer's memory is a small network that takes a gradient step on each token. Its loss on a token *before* the step
# is the **surprise**. The picture shows the surprise on a held-out page, and the text at its largest values.

# %%
display(Image(folder / "memory.png"))

# %% [markdown]
# The same page twice in one stream. At the second reading the memory has seen it. The effect on surprise and on the
# model's loss depends on the trained gates; after a minute of training it is small.

# %%
_, model, step = training.load(folder)
page = next(data.held_out_batches(experiment.data, limit=1))["inputs"][:1, :64]
graphdef, params = nnx.split(model)


@jax.jit
def read(params, tokens):
    model = nnx.merge(graphdef, params)
    logits, _, info = model(tokens, model.init_state(1))
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    return info.surprise, nats[0, :, 0]


surprise, nats = read(params, np.concatenate([page, page], axis=1))
for name, part in (("first", slice(0, 63)), ("second", slice(64, 127))):
    means = f"surprise {surprise[..., part].mean():.3f}, loss {nats[part].mean():.3f} nats a byte"
    print(f"{name} reading: {means}")

# %% [markdown]
# ## Generation
#
# The model reads the prompt and then generates token by token; each token costs the same.

# %%
prompt = np.frombuffer(b"CHAPTER", np.uint8)[None]
for temperature in (0.5, 1.0):
    written = generate(model, prompt, length=120, temperature=temperature, key=jax.random.key(0))[0]
    print(f"temperature {temperature}:", repr(bytes(written.astype(np.uint8)).decode(errors="replace")))

# %% [markdown]
# ## A state of fixed size
#
# The state is the memory's weights, its momentum and the current segment. Full attention keeps a key and a value for
# each token, layer and head.

# %%
size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: model.init_state(1))))
c = experiment.model
for tokens in (256, 4096, 65536):
    cache = tokens * c.depth * 2 * c.heads * c.head_dim * 4
    print(f"after {tokens:6,} tokens: this model {size:11,} bytes, full attention of its width {cache:11,} bytes")

# %% [markdown]
# ## Further
#
# - `titans-jax compare mac transformer lmm`: models with equal parameters, on the same batches, over seeds
# - `titans-jax eval --checkpoint FOLDER`, `titans-jax generate --checkpoint FOLDER --prompt "Call me"`
# - `05_look_inside`: attention and memories of a trained model
