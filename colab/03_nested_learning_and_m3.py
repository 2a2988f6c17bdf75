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
# # Nested learning and M3
#
# An optimizer is a memory: it stores gradients, and its update is what it recalls. You will see:
#
# 1. that gradient descent writes an associative memory, which maps a layer's inputs to its errors;
# 2. that momentum is a memory of gradients, and what a memory that corrects itself does instead;
# 3. M3's two momenta, a fast and a slow one, at work on a gradient made of two frequencies;
# 4. loss curves of a small network trained by SGD, Adam, Muon, M3 and deep momentum, each at the best of five rates.
#
# Equation numbers are those of Nested Learning (arXiv 2512.24695). It takes about a minute on a CPU and needs no
# network, unless titans_jax has to be installed first.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # of titans_jax, if it is not installed: the checkout around this notebook, or "git+https://..."
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE, "matplotlib"], check=True)

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
# A layer computes $y = xW$. Its gradient is $x^\top \delta$, the error $\delta$ at the output under the key $x$: one
# descent step is one write of a linear attention memory, with the layer's inputs for keys and its errors, with the sign
# that lowers them, for values.

# %%
x, target = jax.random.normal(jax.random.key(0), (2, 8, 4))
w = jax.random.normal(jax.random.key(1), (4, 4))
loss = lambda y: jnp.square(y - target).sum()
optimizer = optim.gradient_descent(0.1)  # Eq 1
step, _ = optimizer.update(jax.grad(lambda w: loss(x @ w))(w), optimizer.init(w), w)
error = jax.grad(loss)(x @ w)
written = functional.write(presets.linear_attention(4), {"w": w}, x, -error, rate=0.1)["w"]
print("a descent step and a write of (input, error) agree to", float(jnp.abs(w + step - written).max()))

# %% [markdown]
# The same step is the answer to a small problem of its own (Eq 2): go along the gradient, stay near. And all steps
# together are the answer to one over the whole past, follow the regularised leader (Eq 3).

# %%
g = jax.grad(lambda w: loss(x @ w))(w)
proximal = lambda y: jnp.vdot(y, g) + jnp.square(y - w).sum() / (2 * 0.1)
print("slope of that problem at the step:", float(jnp.abs(jax.grad(proximal)(w + step)).max()))


def descend(optimizer, w, gradients):
    """The weights after updates by these gradients, one after the other."""

    def update(carry, g):
        w, state = carry
        step, state = optimizer.update(g, state, w)
        return (w + step, state), step

    (w, _), steps = jax.lax.scan(update, (w, optimizer.init(w)), gradients)
    return w, steps


gradients = jax.random.normal(jax.random.key(2), (20, 4, 4))
one_by_one, _ = descend(optim.gradient_descent(0.1), w, gradients)
leader, _ = descend(optim.follow_the_regularised_leader(0.1), w, gradients)
print("descent and the regularised leader agree to", float(jnp.abs(one_by_one - leader).max()))

# %% [markdown]
# ## Momentum is a memory of gradients
#
# Momentum (Eq 10-13, 33) adds every gradient to what it holds, whether it holds it already or not. A delta rule (Eq
# 48-49) first asks what it holds under this gradient, and writes the difference. Deep momentum (Eq 50) is a network
# that is trained to answer a gradient with those like it.
#
# Below each sees one gradient forty times, then its opposite. Drawn is how far the update goes along the first.

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
plt.title("A gradient that turns: the update along it, over its largest")
plt.xlabel("update")
plt.legend()
plt.show()

# %% [markdown]
# Momentum needs ten updates to believe that the gradient has turned, the delta rule two. The network answers the
# opposite question with the opposite answer at once.
#
# ## M3: momentum at two time scales
#
# M3 (Algorithm 1) keeps a fast momentum of the last gradients and a slow one that moves once every `chunk` gradients,
# orthogonalises both, and adds them. Here a gradient is a slow part that never changes and a fast part eight times as
# large that changes its sign every sixteen updates. Drawn is how much of the slow part each momentum's direction has.

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
plt.title("The part of the gradient that lasts")
plt.xlabel("update")
plt.ylabel("cosine with the slow part")
plt.legend()
plt.show()

# %% [markdown]
# The fast momentum follows the part that changes sign and sees the lasting one only while it turns; the slow one,
# which averages over chunks, ends up with little else.
#
# ## A small problem
#
# A network of three matrices learns another one's outputs; the inputs' directions differ by a factor of thirty in size.
# Every optimizer is tried at five rates and three seeds in one `vmap`; drawn is the best rate's mean. It is one small
# problem, at a fixed budget: it shows that all of them work, and no more than that.

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
    """The loss at every step of a training at this rate from this seed."""
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
# The options of `optim.scale_by_m3` reach from here to both ends: without Newton-Schulz and the slow momentum it *is*
# Adam, and `mode="literal"` is Algorithm 1 as printed.

# %%
adam_like = optim.scale_by_m3(ns_steps=0, alpha=0.0, second_moment="gradient", rms=None, b1=0.9, b2=0.999)
one, _ = descend(adam_like, w, gradients)
two, _ = descend(optax.scale_by_adam(0.9, 0.999), w, gradients)
print("M3 without its parts and Adam agree to", float(jnp.abs(one - two).max()))
assert jnp.allclose(one, two, atol=1e-4)
