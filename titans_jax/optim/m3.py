"""M3: a fast and a slow momentum, both orthogonalised, divided by the root of a second moment."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from titans_jax.nearest import require_known
from titans_jax.optim.checks import require

PyTree = Any
Mode = Literal["ema", "literal"]
SecondMoment = Literal["update", "gradient"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, which maps singular values to about 0.7 to 1.2 (Jordan 2024)."""


class ScaleByM3State(NamedTuple):
    """The state of M3. Arrays are float32 and have their parameter's shape.

    count: the number of updates, int32.
    m1: the fast momentum.
    m2: the slow momentum, which includes the current chunk's gradients.
    o2: the orthogonalised slow momentum of the last chunk's end.
    v: the second moment, or None.
    """

    count: jax.Array  # type: ignore[assignment]  # optax' name for it, and the name of a method of tuple
    m1: PyTree
    m2: PyTree
    o2: PyTree
    v: PyTree


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
    """M3, multi-scale momentum Muon (Nested Learning, arXiv 2512.24695, Algorithm 1).

    With f = chunk, G the sum of a chunk's f gradients, NS = `orthogonalise`:

        m1 = b1 m1 + (1 - b1) g;  o = NS(m1) + alpha o2;  v = b2 v + (1 - b2) o^2;  u = o / (sqrt(v) + eps)
        u *= rms / sqrt(mean(u^2)) per matrix;  after every f updates: m2 = b3 m2 + (1 - b3) G / f;  o2 = NS(m2)

    m1, m2 and v have Adam's bias correction. The update is +u, in the gradient's dtype, as of every optax.scale_by_*.

    Args:
        mode: "ema", as above; "literal" sums without decay or correction: m1 += b1 g, m2 += b3 G, v += b2 (.)^2.
        second_moment: v is of the square of o ("update") or of g ("gradient"); None for no division.
        rms: the root mean square of u per matrix; None for no scaling.
        ns_steps: iterations of NS; with 0, NS(m) = m.

    Algorithm 1 as printed is mode="literal", second_moment="gradient", rms=None, except that it sums f + 1 terms. There
    the update grows with 1 / |g|, and b1, b3 only scale what NS normalises. Adam is ns_steps=0, alpha=0,
    second_moment="gradient", rms=None. Parameters are matrices [..., in, out], with any leading axes (layers, heads);
    use `optax.partition` for others.
    Raises ValueError: an option out of its range; from init, a parameter with fewer than two axes.

    >>> params = {"kernel": jnp.eye(2)}
    >>> transformation = scale_by_m3()
    >>> updates, state = transformation.update(params, transformation.init(params))
    >>> [round(float(u), 3) for u in updates["kernel"].ravel()]         # rms 0.2
    [0.283, 0.0, 0.0, 0.283]
    """
    require_known("m3.mode", mode, get_args(Mode))
    require_known("m3.second_moment", second_moment, (*get_args(SecondMoment), None))
    ema = mode == "ema"
    for name, b in (("b1", b1), ("b2", b2), ("b3", b3)):
        bound, right = (1.0, "at least 0 and below 1") if ema else (math.inf, "at least 0")
        require(f"m3.{name}", b, right, 0 <= b < bound)
    require("m3.alpha", alpha, "0 or more", 0 <= alpha < math.inf)
    require("m3.chunk", chunk, "1 or more", chunk >= 1)
    require("m3.ns_steps", ns_steps, "0 or more", ns_steps >= 0)
    require("m3.eps", eps, "above 0", 0 < eps < math.inf)
    require("m3.rms", rms, "above 0, or None", rms is None or 0 < rms < math.inf)

    def add(memory: PyTree, term: PyTree, keep: jax.typing.ArrayLike, write: float) -> PyTree:
        return jax.tree.map(lambda m, x: keep * m + write * x, memory, term)

    def rates(b: float) -> tuple[float, float]:
        return (b, 1 - b) if ema else (1.0, b)

    def corrected(memory: PyTree, b: float, n: jax.Array) -> PyTree:
        return jax.tree.map(lambda m: m / (1 - b**n), memory) if ema else memory

    def init(params: PyTree) -> ScaleByM3State:
        _check_matrices(params)
        # A call for each, as a donated state must not share buffers.
        m1, m2, o2, v = (optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(4))
        return ScaleByM3State(jnp.zeros((), jnp.int32), m1, m2, o2, v if second_moment else None)

    def update(gradients: PyTree, state: ScaleByM3State, params: PyTree | None = None) -> tuple[PyTree, ScaleByM3State]:
        del params
        g = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
        count = optax.safe_increment(state.count)
        m1 = add(state.m1, g, *rates(b1))
        # m2 decays at a chunk's first gradient, so the chunk needs no separate sum.
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
    """M3 for matrices: params -= learning_rate (u + weight_decay params), u and options as in `scale_by_m3`.

    Raises ValueError: as `scale_by_m3`.

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
    """Approximate U V^T of each matrix' singular value decomposition by Newton-Schulz (Jordan 2024).

    X = M / (|M|_F + eps), transposed if tall; then `steps` times X = a X + (b A + c A A) X with A = X X^T, (a, b, c) =
    COEFFICIENTS. Leaves [..., in, out] of equal shape, up to a transpose, are one batch. steps=0 is the identity.

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
