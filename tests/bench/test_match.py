"""Models made equal: what is counted is counted right, and the largest stays as it is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from titans_jax import config
from titans_jax.bench import match
from titans_jax.nn import MemoryConfig, ModelConfig
from titans_jax.training import counts

SMALL = ModelConfig(
    block="transformer",
    dim=16,
    depth=2,
    heads=2,
    head_dim=8,
    window=16,
    context=32,
    persistent=0,
    memory=MemoryConfig(heads=2, head_dim=4, chunk=8, conv=0),
)


def experiments(**models):
    base = config.load("tiny")
    return {name: replace(base, model=model) for name, model in models.items()}


def test_matrix_products_are_counted_as_often_as_they_run():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))

    def counted(f, *arguments):
        return counts.matmul_flops(jax.make_jaxpr(f)(*arguments).jaxpr)

    assert counted(jnp.matmul, a, b) == 2 * 3 * 4 * 5
    assert counted(jax.jit(lambda a, b: jax.checkpoint(jnp.matmul)(a, b)), a, b) == 120
    assert counted(lambda a, b: jax.lax.scan(lambda c, x: (c, x @ b), 0, jnp.stack([a] * 7)), a, b) == 7 * 120
    assert counted(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 5))), a, b) == 120
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.zeros((6, 3, 4)), jnp.zeros((6, 4, 5))) == 6 * 120
    assert counted(jax.grad(lambda a, b: jnp.sin(a @ b).sum(), (0, 1)), a, b) == 3 * 120


def test_flops_of_a_transformer_by_hand():
    model = replace(SMALL, attention="full")
    hidden = 8 * round(model.ff_mult * 16 / 8)
    layer = 4 * 16 * 16 + 3 * 16 * hidden + 2 * 16 * 32  # projections, MLP, scores and sums over 32 slots
    forward = 2 * (2 * layer + 16 * 256)
    assert counts.flops_per_token(model, 32) == 3 * forward  # backward: two products for each
    assert counts.flops_per_token(model, 32, least=True) == 3 * forward


def test_least_flops_of_a_memory_by_hand_leave_out_what_is_computed_again():
    lmm = replace(SMALL, block="lmm", memory=replace(SMALL.memory, head_dim=16))
    size, hidden = 2 * 16, 8 * round(lmm.ff_mult * 16 / 8)
    layer = 16 * (5 * size + 3 * 2 + 3 * hidden)  # query, key, value, gate and out, three gates a head, MLP
    W, W1 = 2 * 16 * 64, 16 * 64  # as in test_counts, and one more source of reads: the origin
    memories = 2 * (2 * W + 2 * (W - W1) + 6 * W + 2 * 8 * 2 * (16 + 64) + 4 * W)
    first_reads = 2 * 2 * W  # M(W_0; q)
    forward = 2 * (2 * layer + 16 * 256) + 2 * (memories + first_reads)
    least, run = (counts.flops_per_token(lmm, 16, least=least) for least in (True, False))
    assert least == pytest.approx(3 * forward, rel=0.01)  # beside it are the products of a chunk's decays
    assert least + 2 * memories == pytest.approx(run, rel=0.01)


def test_a_sequence_s_unfilled_chunk_does_not_weigh():
    lmm = replace(SMALL, block="lmm", memory=replace(SMALL.memory, rule="linear_attention"))
    short, long = (counts.flops_per_token(lmm, sequence) for sequence in (32, 512))
    assert short == pytest.approx(long, rel=0.02)


def test_bytes_of_state_by_hand():
    assert counts.state_bytes(SMALL) == 2 * (2 * 16 * 16 * 4 + 4) + 4  # layers of keys, values and a step; the age
    full = replace(SMALL, attention="full", context=64)
    assert counts.state_bytes(full) == 2 * (2 * 64 * 16 * 4 + 4) + 4
    assert full.grows and not SMALL.grows and not replace(full, block="mac").grows


def test_parameters_are_matched_by_the_mlp_to_the_largest():
    plain = experiments(mal=replace(SMALL, block="mal"), transformer=SMALL)
    largest = counts.parameters(plain["mal"].model)
    found, changed = match.matched(plain, "parameters")
    assert found["mal"] == plain["mal"] and changed["mal"] == "-"
    assert changed["transformer"].startswith("hidden 40 -> ")
    one = 3 * 8 * 16 * 2  # a hidden width of 8 more, in both layers
    assert abs(counts.parameters(found["transformer"].model) - largest) <= one / 2
    assert replace(found["transformer"].model, ff_mult=SMALL.ff_mult) == SMALL


def test_states_are_matched_by_what_attention_holds_or_by_the_memory():
    lmm = replace(SMALL, block="lmm", memory=replace(SMALL.memory, head_dim=12))
    full = replace(SMALL, attention="full")
    plain = experiments(lmm=lmm, sliding=SMALL, full=full, other=replace(lmm, memory=SMALL.memory))
    found, changed = match.matched(plain, "state")
    target, slot = counts.state_bytes(lmm), 2 * 2 * 16 * 4
    assert found["lmm"].model == lmm
    for name, field in (("sliding", "window"), ("full", "context")):
        assert abs(counts.state_bytes(found[name].model) - target) <= slot / 2
        assert changed[name].startswith(f"{field} ") and getattr(found[name].model, field) > getattr(SMALL, field)
    assert found["other"].model == lmm and changed["other"] == "memory.head_dim 4 -> 12"


def test_what_cannot_be_matched_is_said():
    plain = experiments(a=SMALL, b=replace(SMALL, block="mac"))
    assert match.matched(plain, "none") == (plain, {"a": "-", "b": "-"})
    with pytest.raises(ValueError, match="nothing that could be changed changes it; leave it out"):
        match._nearest(lambda value: 3, 1, 4)
    assert match._nearest(lambda value: 2 * value * value + value, 2, 1000) == 22  # 903, 990, 1,081
