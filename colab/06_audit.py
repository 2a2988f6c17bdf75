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
# # Does a memory really remember?
#
# A model may answer a question without a memory: from its attention, from its weights, or because an evaluation leaks
# the answer. An audit tells these apart. You will see:
#
# 1. what a model answers with its memory on, frozen, emptied, and exchanged for another text's;
# 2. whether the fact is stored in a memory, and whether the question finds it there;
# 3. whether training, streaming and decoding compute the same;
# 4. the same checks of an untrained model, which fail.
#
# It takes three minutes on a CPU. The command is `titans-jax audit FOLDER`; it writes the table as a page and as JSON.

# %%
# Where titans_jax is missing, as in Colab, this installs it. A jax that is new enough stays as it is.
import importlib.util
import subprocess
import sys

SOURCE = "git+https://github.com/OWNER/titans_jax"
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"titans-jax[plot] @ {SOURCE}"], check=True)

# %%
import math
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
from IPython.display import Markdown

from titans_jax import data, training
from titans_jax.evaluation import audit
from titans_jax.evaluation.facts import make_facts
from titans_jax.evaluation.haystack import FACT, Hay

print("jax", jax.__version__, "on", jax.devices()[0].device_kind)

# %% [markdown]
# ## The model and its texts
#
# `folder` is any run's output folder. Here it is the small model inside the package, which was trained on Moby-Dick
# with keys told in the text. Texts begin with a key and end with the question. Attention and convolutions reach 520
# bytes back, so texts are longer.

# %%
folder = training.RELEASED
experiment, model, step = training.load(folder)
tokenizer = data.load_tokenizer(experiment.data.tokenizer)
seen, row = audit.reach(model), experiment.data.sequence
length = row * math.ceil((seen + 100) / row)
hay = Hay(data.load_sides(experiment.data)[1], tokenizer)
facts = make_facts(hay, FACT, length, samples=16, seed=0)
print(f"attention reaches {seen} tokens back, texts have {length}")
print(tokenizer.decode(facts.texts[0][:60]), "...", tokenizer.decode(facts.question))


# %%
def table(checks):
    words = {True: "pass", False: "**fail**", None: "-"}
    lines = [f"| {check.name} | {words[check.passed]} | {check.shown} | {check.wanted} |" for check in checks]
    return Markdown("\n".join(["| check | | found | wanted |", "| --- | --- | --- | --- |", *lines]))


recalled = audit.recall_checks(model, facts, chance=1 / 900)
table(recalled)

# %% [markdown]
# With another text's memory the model answers that text's key: the answer is in the memory, and nowhere else.

# %%
names = [check.name for check in recalled]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.barh(names, [check.value for check in recalled])
axes.invert_yaxis()
axes.set_xlabel("share of whole answers that are right")
plt.show()

# %% [markdown]
# ## Stored and addressed
#
# Reading one head's memory directly: *stored* means that the key of the fact reads a value nearer to this text's answer
# than to another text's; *addressed* means that the question reads it so.

# %%
table(audit.probe_checks(model, facts))

# %% [markdown]
# ## One text, three ways of reading

# %%
batch = next(data.held_out_batches(replace(experiment.data, batch=8), limit=1))
table(audit.text_checks(model, batch))

# %% [markdown]
# ## An untrained model
#
# The same configuration with random weights. What is measured can fail.

# %%
definition = training.define(experiment.model)
untrained = definition.model(jax.jit(definition.init)(jax.random.key(0)))
table(audit.recall_checks(untrained, facts, chance=1 / 900))
