"""What a memory minimises: the loss between its prediction M(k) and the value v, both [D], for one token.

With r = M(k) - v. Equation numbers are MIRAS' (after arXiv 2504.13173 v1) unless said otherwise. Where the paper makes
a gradient smooth, Sign(x) ~ tanh(sharpness x) and |x| ~ sqrt(x^2 + 1e-6), that gradient is the definition.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from titans_jax.memory.types import Bias


def l2(scale: float = 1.0) -> Bias:
    """scale ||M(k) - v||^2, summed over features (Titans Eq 12 with scale 1; the delta family and TTT with 1/2)."""

    def loss(prediction: Array, value: Array) -> Array:
        return scale * jnp.square(prediction - value).sum()

    return Bias(loss, slope=2.0 * scale, curvature=2.0 * scale)


def dot() -> Bias:
    """-<M(k), v>: the Hebbian write of linear attention (Eq 8)."""

    def loss(prediction: Array, value: Array) -> Array:
        return -(prediction * value).sum()

    return Bias(loss, curvature=0.0)


def l1(sharpness: float = 10.0) -> Bias:
    """||M(k) - v||_1, its gradient tanh(sharpness r) in place of Sign(r) (Eq 12)."""

    def loss(prediction: Array, value: Array) -> Array:
        return _l1(prediction - value, sharpness)

    return Bias(loss, curvature=sharpness)


def lp(p: float, sharpness: float = 10.0) -> Bias:
    """||M(k) - v||_p^p, its gradient p tanh(sharpness r) |r|^(p-1) with the smooth |r| (Eq 10-11); p >= 1."""
    if p < 1:
        raise ValueError(f"p: {p}; ||r||_p^p has a gradient everywhere from 1 on")

    def value(r: Array) -> Array:
        return _abs(r) ** p

    def slope(r: Array) -> Array:
        return p * jnp.tanh(sharpness * r) * _abs(r) ** (p - 1)

    power = _sloped(value, slope)

    def loss(prediction: Array, value: Array) -> Array:
        return power(prediction - value).sum()

    return Bias(loss, curvature=max(1.0, p * (p - 1)))


def huber(delta: float = 1.0, form: str = "norm", sharpness: float = 10.0) -> Bias:
    """Quadratic for small errors and robust for large ones; where there is a `Gates.threshold` it is the token's delta.

    form: "norm" bounds the error as a whole, with gradient r where ||r|| <= delta, else delta r / ||r|| (Eq 15);
    "coordinate" each of its entries, r_i or delta sign(r_i) (Eq 13-14); "mixture" is Yaad as printed, 2 r or
    delta tanh(sharpness r), chosen by ||r|| and discontinuous there (Eq 16: grad l2 or delta grad l1).
    """
    forms: dict[str, Callable[[Array, Array], Array]] = {
        "norm": _huber_of_norm,
        "coordinate": _huber_of_coordinates,
        "mixture": lambda r, bound: jnp.where(_far(r, bound), bound * _l1(r, sharpness), jnp.square(r).sum()),
    }
    if form not in forms:
        raise ValueError(f"form: {form!r}; known are {', '.join(forms)}")
    if not delta > 0:
        raise ValueError(f"delta: {delta}; it must be above 0")

    def loss(prediction: Array, value: Array, threshold: Array | float = delta) -> Array:
        return forms[form](prediction - value, jnp.asarray(threshold, prediction.dtype))

    return Bias(loss, curvature=2.0 if form == "mixture" else 1.0, threshold=True)


def value_shift(radius: float) -> Bias:
    """1/2 max ||M(k) - v'||^2 over ||v' - v|| <= radius, its gradient r + radius r / ||r|| (Eq 17), smooth at r = 0."""
    if radius < 0:
        raise ValueError(f"radius: {radius}; it must be at least 0")

    def loss(prediction: Array, value: Array) -> Array:
        length = jnp.sqrt(jnp.square(prediction - value).sum() + 1e-6)
        return jnp.square(length + radius) / 2

    return Bias(loss, curvature=1 + radius)


def _abs(r: Array) -> Array:
    return jnp.sqrt(r * r + 1e-6)


def _l1(r: Array, sharpness: float) -> Array:
    """The integral of tanh(sharpness r): log(cosh(sharpness r)) / sharpness."""
    return (jnp.logaddexp(sharpness * r, -sharpness * r) - jnp.log(2.0)).sum() / sharpness


def _far(r: Array, bound: Array) -> Array:
    return jnp.square(r).sum() > bound * bound


def _huber_of_norm(r: Array, bound: Array) -> Array:
    far, square = _far(r, bound), jnp.square(r).sum()
    length = jnp.sqrt(jnp.where(far, square, 1.0))  # of no other r: the root has no slope at 0
    return jnp.where(far, bound * (length - bound / 2), square / 2)


def _huber_of_coordinates(r: Array, bound: Array) -> Array:
    size = jnp.abs(r)
    return jnp.where(size <= bound, r * r / 2, bound * (size - bound / 2)).sum()


def _sloped(value: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """value(x) with slope(x) for a derivative: of the printed gradient, no loss is written in closed form."""
    function = jax.custom_jvp(value)
    function.defjvps(lambda tangent, _, x: slope(x) * tangent)
    return function
