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
# # Nested learning and M3
#
# An optimizer is a memory of gradients, and its update is a read of this memory. You will see:
#
# 1. gradient descent as the write of an associative memory, which maps a layer's inputs to its errors;
# 2. momentum as a memory of gradients, beside memories with a delta rule and with a network;
# 3. M3's fast and slow momentum on a gradient of two frequencies;
# 4. loss curves of a small network trained by SGD, Adam, Muon, M3 and deep momentum, each at the best of five rates.
#
# Equation numbers are those of Nested Learning (arXiv 2512.24695). It takes about a minute on a CPU. It needs no
# network, unless titans_jax must be installed first.

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
import optax

from titans_jax import optim
from titans_jax.memory import functional, presets

print("jax", jax.__version__, "| optax", optax.__version__, "| device", jax.devices()[0].device_kind)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}

# %% [markdown]
# ## Gradient descent is an associative memory
#
# A layer computes $y = xW$. Its gradient is $x^\top \delta$, where $\delta$ is the error at the output. So a descent
# step is a write of a linear attention memory: the keys are the layer's inputs, the values its negative errors.

# %%
x, target = jax.random.normal(jax.random.key(0), (2, 8, 4))
w = jax.random.normal(jax.random.key(1), (4, 4))
loss = lambda y: jnp.square(y - target).sum()
optimizer = optim.gradient_descent(0.1)  # Eq 1
step, _ = optimizer.update(jax.grad(lambda w: loss(x @ w))(w), optimizer.init(w), w)
error = jax.grad(loss)(x @ w)
written = functional.write(presets.linear_attention(4), {"w": w}, x, -error, rate=0.1)["w"]
print("difference of a descent step and a write of (input, error):", float(jnp.abs(w + step - written).max()))

# %% [markdown]
# The same step is the minimiser of the linearised loss plus a squared distance to the last weights (Eq 2). All steps
# together are the minimiser over all past gradients: follow the regularised leader (Eq 3).

# %%
g = jax.grad(lambda w: loss(x @ w))(w)
proximal = lambda y: jnp.vdot(y, g) + jnp.square(y - w).sum() / (2 * 0.1)
print("gradient of Eq 2 at the step:", float(jnp.abs(jax.grad(proximal)(w + step)).max()))


def descend(optimizer, w, gradients):
    """The weights after one update for each gradient."""

    def update(carry, g):
        w, state = carry
        step, state = optimizer.update(g, state, w)
        return (w + step, state), step

    (w, _), steps = jax.lax.scan(update, (w, optimizer.init(w)), gradients)
    return w, steps


gradients = jax.random.normal(jax.random.key(2), (20, 4, 4))
one_by_one, _ = descend(optim.gradient_descent(0.1), w, gradients)
leader, _ = descend(optim.follow_the_regularised_leader(0.1), w, gradients)
print("difference of descent and the regularised leader:", float(jnp.abs(one_by_one - leader).max()))

# %% [markdown]
# ## Momentum is a memory of gradients
#
# Momentum (Eq 10-13, 33) adds every gradient. Delta momentum (Eq 48-49) reads the momentum at the gradient and writes
# the difference. Deep momentum (Eq 50) is a network, trained to map a gradient to similar past gradients.
#
# Below, each gets one gradient forty times, then its negative. The plot shows the update's component along the first.

# %%
g = jax.random.normal(jax.random.key(3), (4, 4))
turned = jnp.where(jnp.arange(80)[:, None, None] < 40, g, -g)
momenta = {
    "momentum 0.9": optax.trace(0.9),
    "delta momentum": optim.scale_by_delta_momentum(0.9),
    "deep momentum": optim.scale_by_deep_momentum(0.9),
}
for name, momentum in momenta.items():
    _, steps = descend(momentum, jnp.zeros((4, 4)), turned)
    along = jnp.einsum("tij,ij->t", steps, g)
    plt.plot(along / jnp.abs(along).max(), label=name)
plt.axvline(40, color="#9ca3af", lw=0.8)
plt.title("Normalised update along a gradient that changes its sign")
plt.xlabel("update")
plt.legend()
plt.show()

# %% [markdown]
# Momentum needs ten updates to follow the change of sign, delta momentum two. Deep momentum follows at once, since its
# network is an odd function of the gradient.
#
# ## M3: momentum at two time scales
#
# M3 (Algorithm 1) has a fast momentum and a slow momentum, which is updated once every `chunk` gradients. It
# orthogonalises both and adds them. Here the gradient is the sum of a constant part and of a fast part, which is eight
# times as large and changes its sign every sixteen updates. The plot shows the constant part of each momentum.

# %%
slow, fast = jnp.linalg.qr(jax.random.normal(jax.random.key(4), (16, 2)))[0].T.reshape(2, 4, 4)
signs = jnp.where(jnp.arange(320) // 16 % 2 == 0, 1.0, -1.0)
mixed = slow + 8 * signs[:, None, None] * fast
m3 = optim.scale_by_m3(b1=0.9, b3=0.9, chunk=16)


def watch(state, g):
    _, state = m3.update(g, state)
    return state, (state.m1, state.m2)


_, (quick, steady) = jax.lax.scan(watch, m3.init(slow), mixed)
for name, m in {"fast momentum": quick, "slow momentum": steady}.items():
    along = jnp.einsum("tij,ij->t", m, slow) / (jnp.linalg.norm(m, axis=(1, 2)) + 1e-9)
    plt.plot(along, label=name)
plt.title("The constant part of each momentum")
plt.xlabel("update")
plt.ylabel("cosine with the constant part")
plt.legend()
plt.show()

# %% [markdown]
# The fast momentum follows the fast part, and shows the constant part only at changes of sign. The slow momentum
# averages over chunks, so that mainly the constant part remains.
#
# ## A small problem
#
# A network of three matrices learns the outputs of another one. The scales of the inputs differ by a factor of thirty.
# One `vmap` trains each optimizer at five rates from three seeds; the plot shows the mean at the best rate. One small
# problem at a fixed budget shows only that all of them work.

# %%
sizes = [(16, 32), (32, 32), (32, 4)]


def network(weights, x):
    for w in weights[:-1]:
        x = jnp.tanh(x @ w)
    return x @ weights[-1]


def draw(key):
    keys = jax.random.split(key, len(sizes))
    return [jax.random.normal(k, size) / size[0] ** 0.5 for k, size in zip(keys, sizes, strict=True)]


inputs = jax.random.normal(jax.random.key(5), (256, 16)) * jnp.geomspace(3, 0.1, 16)
outputs = network(draw(jax.random.key(6)), inputs)


def curve(transformation, rate, seed, steps=200):
    """The loss at each step of a training with this rate and seed."""
    optimizer = optax.chain(transformation, optax.scale_by_learning_rate(rate))
    objective = lambda weights: jnp.square(network(weights, inputs) - outputs).mean()

    def step(carry, _):
        weights, state = carry
        value, gradient = jax.value_and_grad(objective)(weights)
        updates, state = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    weights = draw(jax.random.fold_in(jax.random.key(7), seed))
    return jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)[1]


matrices = [optax.contrib.MuonDimensionNumbers()] * len(sizes)
optimizers = {
    "SGD with momentum": (optax.trace(0.9), 0.1),
    "Adam": (optax.scale_by_adam(), 0.01),
    "Muon": (optax.contrib.scale_by_muon(weight_dimension_numbers=matrices), 0.03),
    "M3": (optim.scale_by_m3(), 0.03),
    "delta momentum": (optim.scale_by_delta_momentum(), 0.3),
    "deep momentum": (optim.scale_by_deep_momentum(), 3e-5),
}
grid, seeds = jnp.geomspace(0.1, 10, 5), jnp.arange(3)
final = {}
for name, (transformation, rate) in optimizers.items():
    over_seeds = jax.vmap(lambda rate, seed, t=transformation: curve(t, rate, seed), (None, 0))
    losses = jax.jit(jax.vmap(over_seeds, (0, None)))(rate * grid, seeds)  # rate, seed, step
    mean = losses.mean(1)
    best = int(jnp.nanargmin(mean[:, -1]))
    final[name] = float(mean[best, -1])
    edge = ", the grid's edge" if best in (0, len(grid) - 1) else ""
    spread = float(losses[best, :, -1].std())
    print(f"{name:<18} final loss {final[name]:.1e} +- {spread:.0e} at rate {rate * grid[best]:.3g}{edge}")
    plt.semilogy(mean[best], label=name)
    assert losses[best, :, -1].max() < 0.5 * losses[best, :, 0].min(), name
plt.title("Each at the best of five rates, mean of three seeds")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

# %% [markdown]
# `optim.scale_by_m3` without Newton-Schulz and the slow momentum is Adam; `mode="literal"` is Algorithm 1 as printed.

# %%
adam_like = optim.scale_by_m3(ns_steps=0, alpha=0.0, second_moment="gradient", rms=None, b1=0.9, b2=0.999)
one, _ = descend(adam_like, w, gradients)
two, _ = descend(optax.scale_by_adam(0.9, 0.999), w, gradients)
print("difference of M3 without its parts and Adam:", float(jnp.abs(one - two).max()))
assert jnp.allclose(one, two, atol=1e-4)
