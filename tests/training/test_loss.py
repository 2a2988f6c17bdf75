import jax
import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax.loss import cross_entropy

VOCAB = 11
COEFFICIENTS = pytest.mark.parametrize("label_smoothing, z_loss", [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.3, 1e-4)])


def batch(dtype=np.float32, scale=3.0):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(3, 7, VOCAB))).astype(dtype)
    targets = rng.integers(0, VOCAB, size=(3, 7))
    mask = rng.choice([0, 1, 5], (3, 7), p=[0.3, 0.5, 0.2]).astype(np.float32)
    return logits, targets, mask


def reference(logits, targets, mask, label_smoothing, z_loss):
    """In float64, one token of a weight at a time: the cross-entropy to the smoothed target, plus z_loss (log Z)^2."""
    logits = logits.astype(np.float64)
    total, nll, correct, count = 0.0, 0.0, 0, 0
    for index in zip(*np.nonzero(mask), strict=True):
        row, target = logits[index], targets[index]
        log_z = row.max() + np.log(np.sum(np.exp(row - row.max())))
        wanted = np.full(VOCAB, label_smoothing / VOCAB)
        wanted[target] += 1 - label_smoothing
        total += mask[index] * (-np.sum(wanted * (row - log_z)) + z_loss * log_z**2)
        nll += log_z - row[target]
        correct += row.argmax() == target
        count += 1
    return total / mask.sum(), nll, correct, count


@COEFFICIENTS
def test_values_equal_the_float64_reference(label_smoothing, z_loss):
    logits, targets, mask = batch()
    loss, sums = cross_entropy(logits, targets, mask, label_smoothing=label_smoothing, z_loss=z_loss)
    wanted, nll, correct, count = reference(logits, targets, mask, label_smoothing, z_loss)
    assert 0 < count < mask.size and correct > 0
    np.testing.assert_allclose(loss, wanted, rtol=2e-6)
    np.testing.assert_allclose(sums["nll"], nll, rtol=2e-6)
    assert (sums["correct"], sums["tokens"]) == (correct, count)


@COEFFICIENTS
def test_gradient_equals_central_differences_of_the_reference(label_smoothing, z_loss):
    logits, targets, mask = batch()

    def loss(x):
        return cross_entropy(x, targets, mask, label_smoothing=label_smoothing, z_loss=z_loss)[0]

    gradient = jax.grad(loss)(jnp.asarray(logits))
    numeric, step = np.zeros(logits.shape), 1e-5
    for index in np.ndindex(logits.shape):
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[index] += step
        down[index] -= step
        ends = [reference(x, targets, mask, label_smoothing, z_loss)[0] for x in (up, down)]
        numeric[index] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-7)


def test_bfloat16_logits_are_summed_in_float32():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 64, 512)), jnp.bfloat16)
    targets, mask = rng.integers(0, 512, size=(4, 64)), np.ones((4, 64))
    loss, sums = cross_entropy(logits, targets, mask)
    wanted, _ = cross_entropy(logits.astype(jnp.float32), targets, mask)
    assert loss.dtype == sums["nll"].dtype == jnp.float32
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert jax.grad(lambda x: cross_entropy(x, targets, mask)[0])(logits).dtype == jnp.bfloat16


@pytest.mark.parametrize("id", [-1, -100, VOCAB, 2**31 - 1])
def test_masked_positions_do_not_count_whatever_stands_there(id):
    logits, targets, mask = batch()

    def loss(x, targets):
        return cross_entropy(x, targets, mask, label_smoothing=0.1, z_loss=1e-4)

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits), targets)
    other = np.where(mask > 0, targets, id)
    wild = np.where(mask[..., None] > 0, logits, 1e4)
    (again, same), wild_gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(wild), other)
    assert value == again and jax.tree.map(float, sums) == jax.tree.map(float, same)
    np.testing.assert_array_equal(gradient, wild_gradient)
    assert not np.any(gradient[mask == 0]) and np.all(np.any(gradient[mask > 0] != 0, axis=-1))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_masked_token_s_logits_reach_no_gradient_whatever_they_are(value):
    logits, targets, mask = batch()

    def loss(x):
        return cross_entropy(x, targets, mask, label_smoothing=0.1, z_loss=1e-4)[0]

    wild = np.where(mask[..., None] > 0, logits, value)
    for here, there in zip(*(jax.value_and_grad(loss)(jnp.asarray(x)) for x in (logits, wild)), strict=True):
        np.testing.assert_array_equal(here, there)


def test_nothing_unmasked_is_zero_with_zero_gradient():
    logits, targets, mask = batch()
    (loss, sums), gradient = jax.value_and_grad(cross_entropy, has_aux=True)(jnp.asarray(logits), targets, 0 * mask)
    assert loss == 0 and sums["tokens"] == 0 and not np.any(gradient)


@pytest.mark.parametrize("id", [-1, VOCAB])
def test_an_unmasked_target_outside_the_vocabulary_is_not_silent(id):
    logits, targets, mask = batch()
    targets[tuple(np.argwhere(mask > 0)[0])] = id
    assert np.isnan(cross_entropy(logits, targets, mask)[0])


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_extreme_logits_stay_finite(scale):
    logits, targets, mask = batch(scale=scale)
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, targets, mask)[0])(jnp.asarray(logits))
    assert np.isfinite(loss) and np.all(np.isfinite(gradient))


def test_a_logit_of_minus_infinity_is_a_token_that_cannot_be():
    logits, targets, mask = batch()
    targets = np.where(targets == 0, 1, targets)
    barred = logits.copy()
    barred[..., 0] = -np.inf
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, targets, mask)[0])(jnp.asarray(barred))
    np.testing.assert_allclose(loss, cross_entropy(logits[..., 1:], targets - 1, mask)[0], rtol=1e-6)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[..., 0])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(targets=np.zeros((3, 6), int)), "do not match"),
        (dict(mask=np.ones((3,))), "do not match"),
        (dict(label_smoothing=1.0), "label_smoothing is 1.0"),
        (dict(label_smoothing=-0.1), "label_smoothing is -0.1"),
        (dict(z_loss=-1e-4), "z_loss is -0.0001"),
        (dict(z_loss=float("nan")), "z_loss is nan"),
    ],
)
def test_refusals(change, message):
    logits, targets, mask = batch()
    with pytest.raises(ValueError, match=message):
        cross_entropy(**(dict(logits=logits, targets=targets, mask=mask) | change))
