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
# # Memory and surprise
#
# A neural memory is a small network that is trained while it reads. At each step it predicts the next value. The error
# of the prediction is the *surprise*; the memory takes a step along the gradient of the surprise. You will see:
#
# 1. a dashboard of a memory that reads a repeating pattern with three anomalies: surprise, momentum, and the changes
#    and the norm of its weights;
# 2. anomaly detection by surprise, even if no single value is unusual;
# 3. a wave whose frequency changes, and a memory that learns the new wave;
# 4. the effect of momentum and forgetting, with four settings of each;
# 5. a stream of a hundred thousand steps, read with a state of fixed size.
#
# It takes about a minute on a CPU. It needs no network, unless titans_jax must be installed first.

# %%
# Where titans_jax is missing, as in Colab, this installs it. A jax that is new enough stays as it is.
import importlib.util
import subprocess
import sys

SOURCE = "git+https://github.com/OWNER/titans_jax"
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"titans-jax[plot] @ {SOURCE}"], check=True)

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
# `series_rule` is Titans' rule: squared error, momentum and weight decay, for a network of two layers. `process` reads
# a series `[T, D]` and returns records of every step and the final state. The series is 1, 2, 3, repeated twenty times;
# three steps are 99 instead.

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
# The dashboard. Step 14 is the first anomaly. The scale of the raw surprise is logarithmic.

# %%
draw_reading(series, folder / "dashboard.png", mask=mask, title="1, 2, 3 and three anomalies", memory=memory)
Image(folder / "dashboard.png", width=1000)


# %% [markdown]
# - **Raw surprise** is the error of the prediction made *before* the step is read. At an anomaly it is more than fifty
#   times that of any other step. The step after an anomaly is not surprising either: keys are normalised, so that an
#   unusually large input does not cause a large prediction.
# - **Momentum surprise** is the norm of the momentum $S_t = \eta S_{t-1} - \theta \nabla \ell_t$. It decays over about
#   ten steps after the anomaly, during which the memory still changes. The clip limits it to 1.
# - **Update intensity** is the size of a write. It grows with the surprise, so the anomalies dominate it.
# - **Weight norm**: an anomaly increases it, forgetting decreases it.

# %% [markdown]
# ## Surprise finds anomalies
#
# The score of a step is its surprise divided by the usual surprise of earlier steps. A score above five is an anomaly.


# %%
def found(series, first, memory=memory, **how):
    reading, _ = memory.process(memory.init(jax.random.key(42)), jnp.asarray(series)[:, None], **how)
    return (anomaly_scores(reading.surprise) > THRESHOLD) & (np.arange(len(series)) >= first)


others = ~mask & (np.arange(60) >= 6)  # after two periods of the pattern
print("least surprise of an anomaly        ", round(float(record.surprise[mask].min())))
print("99th percentile of the other steps  ", round(float(np.percentile(record.surprise[others], 99))))
precision, recall = precision_recall(found(series, first=6), mask)
print(f"precision {precision:.2f}, recall {recall:.2f}")
assert record.surprise[mask].min() > np.percentile(record.surprise[others], 99)

# %% [markdown]
# That was easy: 99 is far from 1, 2 and 3. Now the pattern is 1, 2, 3, 4, and an anomaly is a 4 at the wrong step. No
# threshold on values finds it. A memory finds it, since it has learned the pattern; a memory that never writes does
# not.

# %%
hard, hidden = generate_repeating_with_anomalies([1, 2, 3, 4], 60, [101, 150, 212], 4)
for name, rate in {"a memory that learns": 0.05, "a memory that never writes": 0.0}.items():
    steps = found(hard, first=40, rate=rate)
    precision, recall = precision_recall(steps, hidden)
    print(f"{name:<28} precision {precision:.2f}, recall {recall:.2f}, found {np.flatnonzero(steps).tolist()}")

# %% [markdown]
# ## A wave that changes its frequency
#
# Surprise falls while the memory learns the first wave, rises when the frequency quadruples, and falls again.

# %%
wave, shifts = generate_frequency_shift(length=200, base_freq=0.05, shifted_freq=0.2, shift_at=100)
shift = np.isin(np.arange(200), shifts)
reading = draw_reading(wave, folder / "wave.png", mask=shift, title=SCENARIOS["2"].title, mark="shift", memory=memory)
for name, steps in {"before": slice(80, 100), "after": slice(100, 120), "at the end": slice(180, 200)}.items():
    print(f"{name:<12} mean surprise {reading.surprise[steps].mean():.3f}")
Image(folder / "wave.png", width=1000)

# %% [markdown]
# ## Momentum from 0 to 0.99
#
# Without momentum an anomaly changes the memory at one step only. At 0.9 it does so for about ten steps; at 0.99 it
# does so until the end of the series.

# %%
run_scenario("3", folder, memory=memory)
Image(folder / "scenario_3.png", width=900)

# %% [markdown]
# ## Forgetting from 0 to 0.1 per step
#
# Forgetting is weight decay: each step multiplies the weights by $1 - \alpha$. Without it the memory keeps every
# anomaly; with strong forgetting it keeps little more than the last steps.

# %%
run_scenario("4", folder, memory=memory)
Image(folder / "scenario_4.png", width=900)

# %% [markdown]
# ## A long stream
#
# The size of the state does not depend on the length of the stream, and a stream may be read in pieces of any length
# with the same result. This series has two channels. It keeps no snapshots: a hundred thousand would need 800 MB.

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
