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
# # MIRAS: four choices make a memory
#
# MIRAS describes a memory by four choices: what it *is* (architecture), what it *minimises* (bias), how it *forgets*
# (retention) and how it *learns* (learner). You will see:
#
# 1. one write of a memory, and how much it reduces the surprise;
# 2. plots of the choices: losses, retentions, and three learners on the same data;
# 3. ten updates of Moneta, Yaad, Memora and a linear RNN: every loss falls;
# 4. an outlier, which disturbs a squared error and does not disturb Yaad;
# 5. an ensemble of memories, and a memory that learns the outputs of attention.
#
# Equation numbers are those of Titans (arXiv 2501.00663) and MIRAS (arXiv 2504.13173). It takes about a minute on a
# CPU. It needs no network, unless titans_jax must be installed first.

# %%
# Where titans_jax is missing, as in Colab, this installs it. A jax that is new enough stays as it is.
import importlib.util
import subprocess
import sys

SOURCE = "git+https://github.com/OWNER/titans_jax"
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"titans-jax[plot] @ {SOURCE}"], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import titans_jax
from titans_jax.memory import PRESETS, Gates, bias, functional, learner, miras, presets, retention

print("titans_jax", titans_jax.__version__, "| jax", jax.__version__, "| device", jax.devices()[0].device_kind)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}

D, T = 16, 32
key, value = jax.random.normal(jax.random.key(0), (2, T, D))

# %% [markdown]
# ## One write (Titans Eq 8 to 14)
#
# A memory is a `Rule` and a dictionary of weights; each equation is a function of both. `titans` is an MLP of two
# layers with a squared error. A write is one step of gradient descent at test time.

# %%
titans = presets.titans(D, depth=2)
weights = titans.architecture.init(jax.random.key(1))
before = functional.surprise(titans, weights, key, value).sum()
once = functional.write(titans, weights, key, value, rate=0.01)  # Eq 8
after = functional.surprise(titans, once, key, value).sum()
print(f"surprise before {before:.1f}, after one update {after:.1f}: {100 * (1 - after / before):.1f}% less")
assert after < before


# %% [markdown]
# With momentum (Eq 9-10) past gradients are written again; with forgetting (Eq 13-14) the weights decay. `keep` is
# 1 - alpha.


# %%
def updates(count, rule, weights, key, value, rate, momentum=0.0, keep=1.0):
    """Write the same tokens `count` times. Returns the surprise before each write and after the last; the weights."""

    def update(carry, _):
        fast, trace = carry
        loss = functional.surprise(rule, fast, key, value).mean()
        return functional.momentum_write(rule, fast, trace, key, value, rate, momentum, keep), loss

    start = weights, jax.tree.map(jnp.zeros_like, weights)
    (fast, _), losses = jax.jit(lambda start: jax.lax.scan(update, start, length=count))(start)
    return jnp.append(losses, functional.surprise(rule, fast, key, value).mean()), fast


ways = {"plain": (0.0, 1.0), "momentum 0.9": (0.9, 1.0), "momentum 0.9, keep 0.98": (0.9, 0.98)}
for name, (momentum, keep) in ways.items():
    plt.plot(updates(30, titans, weights, key, value, 0.0005, momentum, keep)[0], label=name)
plt.title("Thirty writes of the same tokens")
plt.xlabel("write")
plt.ylabel("surprise")
plt.legend()
plt.show()

halved = functional.forget(titans, weights, keep=0.5)
print("forget(keep=0.5) halves the weights:", bool(jnp.allclose(halved["w1"], weights["w1"] / 2)))

# %% [markdown]
# ## The four choices
#
# **What it is**: a matrix, an MLP of any depth, a gated network... **What it minimises**: the loss of a prediction (Eq
# 10-17). **How it forgets**: the map from the sum of gradients (the dual) to the weights (Eq 14, 17-24). **How it
# learns**: descent, momentum, or least squares over all tokens read, which is Newton's step.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
errors = jnp.linspace(-3, 3, 121)[:, None]
losses = {"l2": bias.l2(0.5), "l1 (Eq 12)": bias.l1(), "l3 (Eq 10-11)": bias.lp(3.0), "Huber (Eq 15)": bias.huber(1.0)}
for name, loss in losses.items():
    left.plot(errors[:, 0], jax.vmap(loss.loss)(errors, jnp.zeros_like(errors)), label=name)
left.set(title="What it minimises", xlabel="error of one prediction", ylabel="loss", ylim=(0, 6))
left.legend()

start = jnp.abs(jax.random.normal(jax.random.key(2), (8, 8))) + 0.1
kept = {
    "decay": retention.decay(),
    "l4 (Moneta)": retention.lq(4.0),
    "KL, hard (Memora)": retention.kl(),
    "KL, soft": retention.kl(hard=False),
}
for name, each in kept.items():
    rule = presets.titans_linear(8)._replace(retention=each)
    w = each.link(each.lift({"w": start}))
    largest, smallest = [], []
    for _ in range(40):
        largest.append(float(w["w"].max()))
        smallest.append(float(w["w"].min()))
        w = functional.forget(rule, w, keep=0.9)
    (line,) = right.plot(largest, label=name)
    right.plot(smallest, color=line.get_color(), ls=":")
right.set(title="How it forgets: decay without writes", xlabel="step, keep 0.9", ylabel="largest and smallest weight")
right.legend()
plt.show()


# %% [markdown]
# Under weight decay and the $l_4$ norm, which coincide here, weights decay to zero; under relative entropies they
# become equal. Next, three learners of a matrix, on tokens whose values are a fixed linear map of the keys. Each reads
# every token once.


# %%
def stream(rule, state, k, v, rate, momentum=0.0):
    """The prediction errors [T - 1]: of each token, after the writes of all tokens before it."""
    memory, ones = miras(rule, chunk=1, clip=None), jnp.ones(len(k))
    gates = Gates(rate * ones, momentum * ones, ones)
    y, _, _ = jax.jit(memory.update)(memory.init(state), jnp.roll(k, -1, axis=0), k, v, gates)
    return jnp.square(y[:-1] - v[1:]).sum(-1)  # reads are at the next token's key


many = jax.random.normal(jax.random.key(3), (200, D)) * jnp.geomspace(1, 0.1, D)  # some directions are rare
many = many / jnp.linalg.norm(many, axis=1, keepdims=True)
wanted = many @ jax.random.normal(jax.random.key(4), (D, D))
matrix = presets.titans_linear(D)
learners = {
    "gradient descent": (matrix._replace(learner=learner.gradient_descent()), 0.4, 0.0),
    "momentum": (matrix, 0.2, 0.8),
    "least squares (Newton, Mesa)": (presets.mesa(D, ridge=0.01), 1.0, 0.0),
}
for name, (rule, rate, momentum) in learners.items():
    errors = stream(rule, rule.architecture.init(jax.random.key(5)), many, wanted, rate, momentum)
    plt.semilogy(jnp.convolve(errors, jnp.ones(10) / 10, mode="valid"), label=name)
plt.title("How it learns: the error of each prediction, mean of ten")
plt.xlabel("token")
plt.legend()
plt.show()

# %% [markdown]
# Descent is slow in rare directions; least squares is not. Momentum repeats a token's gradient at later tokens, which
# does not help if the tokens are independent.
#
# ## Ten updates of four rules
#
# Moneta minimises $\|\cdot\|_3^3$ with an $l_4$ retention. Yaad minimises the Huber loss. Memora has positive weights
# and retains by relative entropy to the last weights (hard: on a simplex; soft: not). A linear RNN is a matrix that
# decays and adds (Eq 3); its loss has no minimum, so here it has a squared error: the delta rule (Eq 9).

# %%
soft = presets.memora(D)._replace(retention=retention.kl(hard=False))
rows = {
    "Moneta (p=3, q=4)": (presets.moneta(D, p=3.0, q=4.0), 2e-4, 1.0),
    "Yaad (delta=1)": (presets.yaad(D), 0.01, 1.0),
    "Memora, hard": (presets.memora(D), 0.002, 1.0),
    "Memora, soft": (soft, 0.002, 1.0),
    "linear RNN (keep 0.95)": (presets.deltanet(D), 0.02, 0.95),
}
for name, (rule, rate, keep) in rows.items():
    losses, _ = updates(10, rule, rule.architecture.init(jax.random.key(6)), key, value, rate, keep=keep)
    assert losses[-1] < losses[0], name
    print(f"{name:<24} loss {losses[0]:8.3f} -> {losses[-1]:8.3f}  ({100 * (1 - losses[-1] / losses[0]):.1f}% less)")
    plt.plot(losses / losses[0], label=name, marker=".")
plt.title("Ten updates")
plt.xlabel("update")
plt.ylabel("loss / first loss")
plt.legend()
plt.show()

# %% [markdown]
# Two of these rules by hand. `PRESETS` has all rules; `titans-jax rules` prints them as a table.

# %%
k, v, M = key[:1], value[:1], jax.random.normal(jax.random.key(7), (D, D))
delta = M - 0.3 * k.T @ (k @ M) + 0.3 * k.T @ v  # MIRAS Eq 9
assert jnp.allclose(functional.write(presets.deltanet(D), {"w": M}, k, v, 0.3)["w"], delta, atol=1e-4)
linear_rnn = 0.95 * M + k.T @ v  # MIRAS Eq 3 and 8
assert jnp.allclose(
    functional.write(presets.linear_attention(D), {"w": M}, k, v, 1.0, 0.95)["w"], linear_rnn, atol=1e-4
)
print(len(PRESETS), "rules:", ", ".join(PRESETS))

# %% [markdown]
# ## An outlier
#
# The linear map again, but the value of token 100 is fifty times too large. The gradient of a squared error grows with
# the error; that of the Huber loss does not grow beyond that of an error of length 1.

# %%
plain = matrix._replace(learner=learner.gradient_descent())
for name, loss in {"squared error": bias.l2(0.5), "Huber (Yaad's loss)": bias.huber(1.0)}.items():
    rule = plain._replace(bias=loss)
    start = rule.architecture.init(jax.random.key(8))
    errors = stream(rule, start, many, wanted.at[100].multiply(50), 0.5)
    plt.semilogy(range(1, 200), errors, lw=1, label=name)
plt.axvline(100, color="#c0392b", lw=0.8)
plt.title("One outlier, at token 100: the error of each prediction")
plt.xlabel("token")
plt.legend()
plt.show()

# %% [markdown]
# With a squared error the memory needs a hundred tokens to recover. With the Huber loss it learns more slowly at first,
# and the outlier hardly disturbs it.
#
# ## An ensemble of memories
#
# An ensemble writes every token to each of its members and reads their mean.

# %%
members = {"titans": (presets.titans(D), 0.002), "yaad": (presets.yaad(D), 0.005), "moneta": (presets.moneta(D), 1e-4)}
rules = [rule for rule, _ in members.values()]
memory = functional.ensemble(*(miras(rule, chunk=8) for rule in rules))
state = memory.init([rule.architecture.init(jax.random.key(9)) for rule in rules])
ones = jnp.ones(T)
update = jax.jit(memory.update)
for _ in range(3):
    y, state, infos = update(state, key, key, value, Gates(0.002 * ones, 0.9 * ones, ones))
    print({name: round(float(info.surprise.mean()), 2) for name, info in zip(members, infos, strict=True)},
          "the ensemble's error", round(float(jnp.square(y - value).sum(-1).mean()), 2))  # fmt: skip

# %% [markdown]
# ## A memory that learns the outputs of attention
#
# Attention (Titans Eq 1-2) sees all earlier tokens; linear attention (Eq 3-5) is a memory that only adds. Their outputs
# are written to a deep memory, which then reproduces them without attention.

# %%
x = jax.random.normal(jax.random.key(10), (T, D))
for name, attend in {"attention": functional.attention, "linear attention": functional.linear_attention}.items():
    context = attend(x, x, x, causal=True)
    losses, fast = updates(20, titans, weights, x, context, 0.002)
    answer = functional.read(titans, fast, x)
    print(f"{name:<17} surprise {losses[0]:.1f} -> {losses[-1]:.1f}; reads {answer.shape}")
    assert losses[-1] < losses[0]
