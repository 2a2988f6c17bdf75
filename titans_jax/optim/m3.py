"""M3: a fast and a slow momentum of the gradient, each orthogonalised, over the root of a second moment."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Mode = Literal["ema", "literal"]
SecondMoment = Literal["update", "gradient"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Newton-Schulz' quintic: largest slope at zero, singular values end within about 0.7 to 1.2 (Jordan 2024)."""


class ScaleByM3State(NamedTuple):
    """What M3 carries from update to update; every array float32 and shaped like its parameter."""

    count: jax.Array  # type: ignore[assignment]  # the name optax gives it, which tuple's method bears too
    """Updates so far, int32."""
    m1: PyTree
    """The fast momentum."""
    m2: PyTree
    """The slow momentum, the running chunk's gradients already in it."""
    o2: PyTree
    """The slow momentum at the end of the last chunk, orthogonalised."""
    v: PyTree
    """The second moment, None without one."""


def scale_by_m3(
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9,
    *,
    alpha: float = 0.5,
    chunk: int = 16,
    ns_steps: int = 5,
    eps: float = 1e-8,
    second_moment: SecondMoment | None = "update",
    mode: Mode = "ema",
    rms: float | None = 0.2,
) -> optax.GradientTransformation:
    """M3, multi-scale momentum Muon (Nested Learning, arXiv 2512.24695, Algorithm 1), made to decay and aligned.

    With f = chunk, t = 1, 2, ... the update, G the sum of a chunk's f gradients, NS as in `orthogonalise`:

        m1 = b1 m1 + (1 - b1) g;  o = NS(m1) + alpha o2;  v = b2 v + (1 - b2) o^2;  u = o / (sqrt(v) + eps)
        u *= rms / sqrt(mean(u^2)) per matrix;  after every f updates: m2 = b3 m2 + (1 - b3) G / f;  o2 = NS(m2)

    m1, m2 and v are divided by 1 - b^n after n of their steps, as Adam does. mode "literal" sums without decay or
    that correction: m1 += b1 g, m2 += b3 G, v += b2 (.)^2. second_moment says whose square v follows, None leaves
    the division out; rms None leaves the size as it comes. Algorithm 1 as printed, but for its sum of f + 1 terms, is
    mode="literal", second_moment="gradient", rms=None; there the rates only scale what NS normalises, and the update
    grows as 1 / |g|. With ns_steps=0, NS(m) = m, and ns_steps=0, alpha=0, second_moment="gradient", rms=None is Adam.

    Parameters are matrices [..., in, out], stacked over any leading axes (layers, heads): send the rest elsewhere by
    `optax.partition`. The update is +u, in the gradient's dtype, as of every optax.scale_by_*; state is float32.

    Raises:
        ValueError: an option out of its range; from init, a parameter with fewer than two axes.

    >>> params = {"kernel": jnp.eye(2)}
    >>> transformation = scale_by_m3()
    >>> updates, state = transformation.update(params, transformation.init(params))
    >>> [round(float(u), 3) for u in updates["kernel"].ravel()]         # rms 0.2
    [0.283, 0.0, 0.0, 0.283]
    """
    _check(dict(b1=b1, b2=b2, b3=b3), alpha, chunk, ns_steps, eps, second_moment, mode, rms)
    ema = mode == "ema"

    def add(memory: PyTree, term: PyTree, keep: jax.typing.ArrayLike, write: float) -> PyTree:
        return jax.tree.map(lambda m, x: keep * m + write * x, memory, term)

    def rates(b: float) -> tuple[float, float]:
        return (b, 1 - b) if ema else (1.0, b)

    def corrected(memory: PyTree, b: float, n: jax.Array) -> PyTree:
        return jax.tree.map(lambda m: m / (1 - b**n), memory) if ema else memory

    def init(params: PyTree) -> ScaleByM3State:
        _check_matrices(params)
        # One call per memory: a step that donates its state wants buffers of their own.
        m1, m2, o2, v = (optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(4))
        return ScaleByM3State(jnp.zeros((), jnp.int32), m1, m2, o2, v if second_moment else None)

    def update(gradients: PyTree, state: ScaleByM3State, params: PyTree | None = None) -> tuple[PyTree, ScaleByM3State]:
        del params
        g = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
        count = optax.safe_increment(state.count)
        m1 = add(state.m1, g, *rates(b1))
        # Decaying once, at a chunk's first gradient, m2 needs no separate sum of the chunk.
        keep, write = rates(b3)
        m2 = add(state.m2, g, jnp.where(state.count % chunk == 0, keep, 1.0), write / chunk if ema else write)
        fast = orthogonalise(corrected(m1, b1, count), ns_steps, eps)
        u = jax.tree.map(lambda fast, slow: fast + alpha * slow, fast, state.o2)
        v = None
        if second_moment:
            v = add(state.v, jax.tree.map(jnp.square, u if second_moment == "update" else g), *rates(b2))
            u = jax.tree.map(lambda u, v: u / (jnp.sqrt(v) + eps), u, corrected(v, b2, count))
        if rms is not None:
            u = jax.tree.map(lambda u: u * rms / (_root_mean_square(u) + eps), u)
        o2 = jax.lax.cond(
            count % chunk == 0,
            lambda m2, _: orthogonalise(corrected(m2, b3, count // chunk), ns_steps, eps),
            lambda _, o2: o2,
            m2,
            state.o2,
        )
        return jax.tree.map(lambda u, g: u.astype(g.dtype), u, gradients), ScaleByM3State(count, m1, m2, o2, v)

    return optax.GradientTransformation(init, update)


def m3(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, **options: Any
) -> optax.GradientTransformation:
    """M3 for matrices: params -= learning_rate (u + weight_decay params), with u and the options of `scale_by_m3`.

    Raises:
        ValueError: as `scale_by_m3`.

    >>> params = jnp.ones((2, 2))
    >>> optimizer = m3(0.1, weight_decay=1.0)
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> [round(float(u), 3) for u in updates.ravel()]                   # -0.1 (0.2 + 1)
    [-0.12, -0.12, -0.12, -0.12]
    """
    return optax.chain(
        scale_by_m3(**options), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)
    )


def orthogonalise(tree: PyTree, steps: int = 5, eps: float = 1e-8) -> PyTree:
    """Every matrix near to the U V^T of its singular value decomposition, by Newton-Schulz (Jordan 2024).

    X = M / (|M|_F + eps), transposed when tall; `steps` times X = a X + (b A + c A A) X with A = X X^T and (a, b, c) =
    COEFFICIENTS. Leaves [..., in, out] of one shape, or its transpose, go through one batch. steps=0 is the identity.

    >>> out = orthogonalise({"wide": jnp.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])})
    >>> [round(float(s), 1) for s in jnp.linalg.svd(out["wide"], compute_uv=False)]
    [1.1, 0.7]
    """
    if steps == 0:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    wide = [x.mT if _is_tall(x) else x for x in leaves]
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(wide):
        alike.setdefault(x.shape, []).append(i)
    for members in alike.values():
        stack = _newton_schulz(jnp.stack([wide[i] for i in members]), steps, eps)
        for i, x in zip(members, stack, strict=True):
            wide[i] = x
    return jax.tree.unflatten(treedef, [x.mT if _is_tall(leaf) else x for x, leaf in zip(wide, leaves, strict=True)])


def _newton_schulz(x: jax.Array, steps: int, eps: float) -> jax.Array:
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _is_tall(x: jax.Array) -> bool:
    return x.shape[-2] > x.shape[-1]


def _root_mean_square(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=(-2, -1), keepdims=True))


def _check_matrices(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim < 2:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"m3: {name!r} has shape {leaf.shape}, it must be [..., in, out]; use optax.partition")


def _check(
    rates: dict[str, float],
    alpha: float,
    chunk: int,
    ns_steps: int,
    eps: float,
    second_moment: str | None,
    mode: str,
    rms: float | None,
) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"m3: mode {mode!r} is unknown; known are {', '.join(get_args(Mode))}")
    if second_moment not in (None, *get_args(SecondMoment)):
        raise ValueError(f"m3: second_moment {second_moment!r} is unknown; known are update, gradient, None")
    bound, below = (1.0, " and below 1") if mode == "ema" else (math.inf, "")
    for name, value, right, holds in [
        *((name, b, f"at least 0{below}", 0 <= b < bound) for name, b in rates.items()),
        ("alpha", alpha, "0 or more", 0 <= alpha < math.inf),
        ("chunk", chunk, "1 or more", chunk >= 1),
        ("ns_steps", ns_steps, "0 or more", ns_steps >= 0),
        ("eps", eps, "above 0", 0 < eps < math.inf),
        ("rms", rms, "above 0, or None", rms is None or 0 < rms < math.inf),
    ]:
        if not holds:
            raise ValueError(f"m3: {name} is {value}, it must be {right}")
