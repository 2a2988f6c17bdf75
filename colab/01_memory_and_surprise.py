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
# # Memory and surprise
#
# A neural memory is a small network that is trained while it reads. At every step it predicts what comes next; the
# error of that prediction is its *surprise*, and the gradient of the surprise is what it writes. You will see:
#
# 1. a dashboard of a memory that reads a repeating pattern with three anomalies: its surprise, the momentum of its
#    surprise, what each step changes in its weights, and how large they are;
# 2. anomalies found by surprise, also where no single value is unusual;
# 3. a wave that changes its frequency, and the memory that learns it anew;
# 4. what momentum and forgetting do, four settings of each side by side;
# 5. a hundred thousand steps read with a state of one size.
#
# It takes about a minute on a CPU and needs no network, unless titans_jax has to be installed first.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # of titans_jax, if it is not installed: the checkout around this notebook, or "git+https://..."
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE, "matplotlib"], check=True)

# %%
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image

from titans_jax.series import (
    SCENARIOS,
    THRESHOLD,
    anomaly_scores,
    draw_reading,
    generate_frequency_shift,
    generate_repeating_with_anomalies,
    precision_recall,
    run_scenario,
    series_memory,
    series_rule,
)

np.set_printoptions(precision=2, suppress=True)
folder = Path("outputs/memory_and_surprise")
print("jax", jax.__version__, "on", jax.devices()[0].device_kind)

# %% [markdown]
# ## A memory reads a series
#
# `series_rule` is Titans' rule: squared error, momentum, weight decay, on a network of two matrices. `process` reads a
# series `[T, D]` and returns what happened at every step, and the state with which it would go on. The series is 1, 2,
# 3 said twenty times; at three steps there is 99 instead.

# %%
series, mask = generate_repeating_with_anomalies([1, 2, 3], repeats=20, anomaly_indices=[14, 35, 50], anomaly_value=99)
memory = series_memory(series_rule(memory_dim=16, hidden_dim=64), input_dim=1)
state = memory.init(jax.random.key(42))  # equal keys, equal memories
record, end = memory.process(state, jnp.asarray(series)[:, None], momentum=0.9, forget_rate=0.01, snapshots=True)

print("surprise      ", record.surprise[10:17], "at steps 10 to 16")
print("momentum      ", record.momentum[10:17])
print("keep          ", record.gates.keep[10:17])
print("snapshots     ", {name: weights.shape for name, weights in record.weights.items()})
print("steps read    ", int(end.memory.step))

# %% [markdown]
# The dashboard of that reading. Step 14 is the first anomaly. Note the scale of the raw surprise: it is logarithmic.

# %%
draw_reading(series, folder / "dashboard.png", mask=mask, title="1, 2, 3 and three anomalies", memory=memory)
Image(folder / "dashboard.png", width=1000)

# %% [markdown]
# - **Raw surprise** is the error of a prediction made *before* the step was seen. At an anomaly it is more than fifty
#   times that of any other step, those right after it included: what the memory reads of an anomaly is a key of length
#   1 like any other, so that an unusual input predicts nothing large itself.
# - **Momentum surprise** is the norm of $S_t = \eta S_{t-1} - \theta \nabla \ell_t$, the momentum itself. It outlasts
#   the anomaly by about ten steps, and during those the memory goes on changing. It ends at 1, where the clip is.
# - **Update intensity**: a write is as large as its surprise, so that nothing but the anomalies leaves much of a trace.
# - **Weight norm**: an anomaly makes the memory grow, forgetting makes it shrink.

# %% [markdown]
# ## Surprise finds anomalies
#
# The score of a step is its surprise over what was usual in the steps before (never after). A step counts as found
# where that is more than five times.


# %%
def found(series, first, memory=memory, **how):
    reading, _ = memory.process(memory.init(jax.random.key(42)), jnp.asarray(series)[:, None], **how)
    return (anomaly_scores(reading.surprise) > THRESHOLD) & (np.arange(len(series)) >= first)


others = ~mask & (np.arange(60) >= 6)  # once the pattern has been seen twice
print("least surprise of an anomaly        ", round(float(record.surprise[mask].min())))
print("99th percentile of the other steps  ", round(float(np.percentile(record.surprise[others], 99))))
precision, recall = precision_recall(found(series, first=6), mask)
print(f"precision {precision:.2f}, recall {recall:.2f}")
assert record.surprise[mask].min() > np.percentile(record.surprise[others], 99)

# %% [markdown]
# That was easy: 99 is far from 1, 2 and 3. Now the pattern is 1, 2, 3, 4 and an anomaly is a 4 in another's place. No
# threshold on values finds it; a memory of the pattern does, and one that never writes does not.

# %%
hard, hidden = generate_repeating_with_anomalies([1, 2, 3, 4], 60, [101, 150, 212], 4)
for name, rate in {"a memory that learns": 0.05, "a memory that never writes": 0.0}.items():
    steps = found(hard, first=40, rate=rate)
    precision, recall = precision_recall(steps, hidden)
    print(f"{name:<28} precision {precision:.2f}, recall {recall:.2f}, found {np.flatnonzero(steps).tolist()}")

# %% [markdown]
# ## A wave that changes its frequency
#
# Surprise falls while the memory learns the first wave, rises where the frequency quadruples, and falls again.

# %%
wave, shifts = generate_frequency_shift(length=200, base_freq=0.05, shifted_freq=0.2, shift_at=100)
shift = np.isin(np.arange(200), shifts)
reading = draw_reading(wave, folder / "wave.png", mask=shift, title=SCENARIOS["2"].title, mark="shift", memory=memory)
for name, steps in {"before": slice(80, 100), "after": slice(100, 120), "at the end": slice(180, 200)}.items():
    print(f"{name:<12} mean surprise {reading.surprise[steps].mean():.3f}")
Image(folder / "wave.png", width=1000)

# %% [markdown]
# ## Momentum, from none to 0.99
#
# Without momentum an anomaly is over when it is over. At 0.9 it is felt for ten steps, at 0.99 it never fades.

# %%
run_scenario("3", folder, memory=memory)
Image(folder / "scenario_3.png", width=900)

# %% [markdown]
# ## Forgetting, from none to a tenth a step
#
# Forgetting is weight decay: the memory keeps $1 - \alpha$ of itself at every step. Without it each anomaly stays; with
# much of it the memory holds little more than the last steps.

# %%
run_scenario("4", folder, memory=memory)
Image(folder / "scenario_4.png", width=900)

# %% [markdown]
# ## A long stream
#
# The state has one size, however long the stream; pieces of any length give what the whole would. Two channels this
# time, and no snapshots: the weights of a hundred thousand steps would be 800 MB.

# %%
steps = jnp.arange(100_000)
stream = jnp.stack([jnp.sin(0.3 * steps), jnp.cos(0.17 * steps)], axis=1)
long_memory = series_memory(series_rule(), input_dim=2)
state, start = long_memory.init(jax.random.key(0)), time.perf_counter()
for piece in jnp.split(stream, 4):
    reading, state = long_memory.process(state, piece, forget_rate=0.001)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{int(state.memory.step):>7} steps, mean surprise {reading.surprise.mean():.4f}, state {size:,} bytes")
print(f"{len(stream) / (time.perf_counter() - start):,.0f} steps a second, compiling included")
