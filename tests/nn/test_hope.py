"""HOPE's layers under the laws of nn, and the CMS against its equations."""

import dataclasses

import numpy as np
import pytest

from tests.nn.members import BATCH, SEGMENT, config_of, label, layer_of, subject
from tests.nn.test_laws import (  # noqa: F401  # pytest collects the laws from here
    Member,
    close,
    gradients,
    made,
    read,
    same,
    test_a_token_four_windows_back_is_remembered,
    test_any_split_of_a_stream_gives_the_same_outputs,
    test_causality,
    test_greedy_decoding_equals_one_call,
    test_packed_documents_do_not_see_each_other,
    test_rows_do_not_mix_and_calls_repeat,
    tokens,
)
from titans_jax.nn import CMSConfig, ModelConfig
from titans_jax.nn.cms import CMS
from titans_jax.nn.layers import SwiGLU

CMS_STATIC = CMSConfig(periods=(8, 16), rate=0.0)
HOPE = dict(block="hope", rule="dgd", chunk=SEGMENT // 2, conv=4, max_rate=0.25)
ROWS = [
    HOPE,
    dict(block="hope,hope_attention", rule="titans", attention="sliding", residual="value", conv=0),
    dict(block="hope_attention", attention="segmented", positions="learned"),
    dict(block="hope", rule="dgd_linear"),
]


def config(row, **cms) -> ModelConfig:
    return config_of(row, cms=dataclasses.replace(CMS_STATIC, **cms))


@pytest.fixture(
    scope="module",
    params=[ROWS[0], *(pytest.param(row, marks=pytest.mark.slow) for row in ROWS[1:])],
    ids=label,
)
def member(request):
    row = request.param
    if row["block"] == "hope_attention":  # for the law that says who remembers
        row = row | {"block": "transformer"}
    return made(row, config(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS[:3], ids=label)
def test_every_parameter_has_a_gradient(row):
    found = gradients(row | {"cms": dict(rate=0.0)}, remat=True)
    unread = {name for name in found if "/momentum/" in name and row.get("rule") != "titans"}
    dead = {name for name, x in found.items() if not np.abs(x).any()}
    assert all(np.isfinite(x).all() for x in found.values())
    # the first attention layer has no values to mix in
    assert dead - {"blocks/1/attention/projections/mix"} == unread, dead


def swiglu(level: SwiGLU, kernels, x: np.ndarray) -> np.ndarray:
    gate, up, down = (
        np.asarray(kernels.get(n, getattr(level, n).kernel[...]), np.float64) for n in ("gate", "up", "down")
    )
    h = x @ gate
    return (h / (1 + np.exp(-h)) * (x @ up)) @ down


def normal(norm, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...], np.float64)


@pytest.mark.parametrize("variant", ["sequential", "nested", "independent"])
def test_the_cms_equals_its_equations(variant):
    """Eq 71, 73: a chain; Eq 74: a sum; with the parameters and with kernels of each sequence."""
    made = config(ROWS[0], periods=(8, 0, 16), rate=0.1, variant=variant)
    cms = layer_of(CMS, made)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 5, made.dim)).astype(np.float32)
    kernels = cms.kernels(BATCH)
    assert kernels[1] == {}
    kernels = tuple({n: np.asarray(w) + rng.normal(size=w.shape) / 8 for n, w in level.items()} for level in kernels)
    got = cms(x, tuple({n: w.astype(np.float32) for n, w in level.items()} for level in kernels))
    want = x.astype(np.float64)
    for norm, level, own in zip(cms.norms, cms.levels, kernels, strict=True):
        want = want + swiglu(level, own, normal(norm, x.astype(np.float64) if variant == "independent" else want))
    close(np.asarray(got), want, 1e-5)


def test_kernels_equal_to_the_parameters_change_nothing():
    """Kernels of each sequence equal to the parameters, against no such kernels."""
    own, _ = read(subject(config(ROWS[2], rate=0.1)), tokens())
    static, _ = read(subject(config(ROWS[2])), tokens())
    close(own, static, 3e-6)


WRONG = {
    "none": (dict(periods=()), r"model\.cms\.periods: \(\); give each level a number"),
    "multiples": (dict(periods=(8, 12)), r"model\.cms\.periods: \(8, 12\) are not all multiples of the smallest, 8"),
    "rate": (dict(rate=-1.0), r"model\.cms\.rate: -1\.0; it must be 0 or more"),
    "clip": (dict(clip=0.0), r"model\.cms\.clip: 0\.0; it must be above 0"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_an_invalid_cms_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(ROWS[0], **changes).check()


def test_a_decay_per_channel_is_refused():
    with pytest.raises(ValueError, match=r"model\.memory\.channel_keep: hope has one decay per head"):
        config(HOPE | {"channel_keep": True}).check()
