"""Chains of scan steps, and the TPU compiler's cycles, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from titans_jax.bench import memory, processes, tpu
from titans_jax.bench.hlo import Program
from titans_jax.training import counts


def chain(function, *arguments):
    return counts.scan_depth(jax.make_jaxpr(function)(*arguments).jaxpr)


def add(carry, x):
    return carry + x, carry


def test_nested_scans_multiply_and_scans_in_a_row_add_up():
    x = jnp.ones((5, 3))

    def nested(x):
        return jax.lax.scan(lambda carry, row: (jax.lax.scan(add, carry, row)[0], None), 0.0, x)[0]

    assert chain(nested, x) == 5 * 3
    assert chain(lambda x: jax.lax.scan(add, nested(x), x[:, 0])[0], x) == 5 * 3 + 5
    assert chain(lambda x: nested(x) + jax.lax.scan(add, 0.0, x[:, 0])[0], x) == 5 * 3  # side by side
    assert chain(jax.jit(jax.checkpoint(nested)), x) == 5 * 3
    assert chain(jax.grad(lambda x: jax.lax.scan(lambda y, x: (y * x, None), 1.0, x)[0]), x[:, 0]) == 5 + 5  # and back
    assert chain(lambda x: x @ x.T, x) == 0


def test_what_no_output_needs_does_not_count_and_the_longest_branch_does():
    def unused(x):
        jax.lax.scan(add, 0.0, x)
        return x.sum()

    def branches(x):
        return jax.lax.cond(x[0] > 0, lambda x: jax.lax.scan(add, 0.0, x)[0], lambda x: x.sum(), x)

    assert chain(unused, jnp.ones(7)) == 0 and chain(branches, jnp.ones(7)) == 7
    assert chain(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, x), 0) == 1


def test_titans_steps_through_its_chunks_and_tnt_through_those_of_a_shard():
    def steps(rule, length):
        case = {"rule": rule, "shape": (1, 8), "length": length, "kind": "forward", "chunk": 16}
        return memory._subject(case, alone=False).counted["steps"]

    assert steps("titans", 2048) == 2048 // 16 and steps("titans", 4096) == 4096 // 16
    assert steps("tnt", 2048) == steps("tnt", 4096) == 2048 // 16


PROGRAM = """HloModule jit_f

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = f32[4]{0} add(%x, %y), backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %inner = (s32[]) while(%t), condition=%condition.2, body=%leaf, metadata={op_name="while"}
}

%leaf (p: s32[]) -> s32[] {
  ROOT %b = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
}

%fused (p: f32[4]) -> f32[4] {
  ROOT %m = f32[4]{0} multiply(%p, %p)
}

%condition.1 (p: (s32[], f32[4])) -> pred[] {
  %bound = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%condition.2 (p: s32[]) -> pred[] {
  %bound.2 = s32[]{:T(128)} constant(3)
  ROOT %lt.2 = pred[] compare(%i, %bound.2), direction=LT
}

%dear (p: f32[4]) -> f32[4] {
  ROOT %d = f32[4]{0} copy(%p), backend_config={"window_config":{"estimated_cycles":"1000"}}
}

ENTRY %main.9 (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%tuple), condition=%condition.1, body=%body.1, metadata={op_name="while"}
  %c = f32[4]{0} conditional(%i, %p, %p), branch_computations={%leaf, %dear}
  ROOT %z = f32[4]{0} copy(%c), backend_config={"window_config":{"estimated_cycles":"2"}}
}
"""


def test_cycles_of_a_program_by_hand():
    assert Program(PROGRAM).cycles() == 5 * (10 + 3 * 7) + 1000 + 2


def test_the_steps_that_the_compiler_notes_at_a_loop_count():
    noted = PROGRAM.replace("direction=LT", "direction=GT")  # so that the conditions say nothing
    for body, steps in (("body.1", 4), ("leaf", 6)):
        note = f'body=%{body}, backend_config={{"known_trip_count":{{"n":"{steps}"}}}}'
        assert f"body=%{body}" in noted
        noted = noted.replace(f"body=%{body}", note)
    assert Program(noted).cycles() == 4 * (10 + 6 * 7) + 1000 + 2


def test_a_loop_that_does_not_say_its_steps_is_refused():
    with pytest.raises(ValueError, match="a loop whose number of steps"):
        Program(PROGRAM.replace("direction=LT", "direction=GT")).cycles()


@pytest.mark.slow
@pytest.mark.skipif(not tpu.available(), reason="needs the extra: pip install titans-jax[tpu]")
def test_the_tpu_compiler_says_cycles():
    case = {"rule": "titans", "shape": (4, 64), "kind": "training", "chunk": 16}
    found = []
    for length in (2048, 4096):
        with processes.process("titans_jax.bench.tpu:memory_cycles", case | {"length": length}) as ask:
            found.append(ask()["cycles"])
    assert found[1] == pytest.approx(found[0], rel=0.1)  # of a token
