"""The plan of a training: programs counted by hand, and a real step compiled for devices that are here."""

import dataclasses
import json

import jax
import pytest

from titans_jax import config
from titans_jax.__main__ import main
from titans_jax.bench import plan, tpu
from titans_jax.bench.hlo import Program, wire
from titans_jax.bench.plan import abstract_state, refused, undivided
from titans_jax.training.counts import CHIPS, Chip
from titans_jax.training.placement import Placement
from titans_jax.training.step import define, init_state, optimizer_of

PROGRAM = """
%fused.1 (p: f32[8,4]) -> f32[32,4] {
  ROOT %g = f32[32,4]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%fused.2 (p: f32[8,4]) -> f32[32,4] {
  ROOT %h = f32[32,4]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%body (p: s32[]) -> s32[] {
  %s = f32[32,4]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %d = f32[32,4]{1,0} fusion(%s), kind=kCustom, calls=%fused.2
  %b = bf16[16]{0} reduce-scatter(%x), channel_id=8, replica_groups={{0,1},{2,3}}, dimensions={0}
}

%condition (p: s32[]) -> pred[] {
  %bound = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %e = f32[32,4]{1,0} fusion(%p), kind=kCustom, calls=%fused.2
  %w = (s32[], f32[4]) while(%tuple), condition=%condition, body=%body
  %r = (f32[10]{0}, bf16[6]{0}) all-reduce(%a, %b), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
  %n = (f32[8]{0}, f32[16]{0}) all-gather-start(%a), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  %m = f32[16]{0} all-gather-done(%n)
}
"""


def test_collectives_of_a_program_by_hand():
    found = Program(PROGRAM).collectives()
    parts = 32 * 4 * 4 * 3 / 4  # channel 7 is one collective in two fusions, and runs where it runs least often
    assert found == {
        "all-gather": {"count": 2, "bytes": parts + 16 * 4 / 2},
        "reduce-scatter": {"count": 5, "bytes": 5 * 16 * 2},
        "all-reduce": {"count": 1, "bytes": (40 + 12) * 2 * 3 / 4},
    }


def test_a_group_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="how many devices"):
        wire("  %a = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add")


def small(**model):
    base = config.load("transformer")
    wide = dataclasses.replace(base.model, vocab_size=512, dim=128, depth=2, heads=2, window=64, **model)
    data = dataclasses.replace(base.data, batch=8, sequence=64)
    return dataclasses.replace(base, model=wide, data=data, optim=dataclasses.replace(base.optim, name="adamw"))


def test_the_abstract_state_is_the_state_of_a_run():
    experiment, placement = small(), Placement.of("", jax.devices()[:1])
    optimizer = optimizer_of(experiment.model, experiment.optim, experiment.train.steps)
    made = init_state(define(experiment.model), optimizer, placement, 0)
    planned = abstract_state(define(experiment.model), optimizer, placement)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), planned)
    assert undivided(None, planned.params, placement) == {}


def test_a_plan_counts_what_the_step_holds_and_computes(monkeypatch):
    monkeypatch.setitem(CHIPS, jax.devices()[0].device_kind, Chip(1e12, 1e9, 1e9))
    found = plan.plan(small(), jax.devices()[:1])
    params = found["parameters"]
    assert found["fits"] and found["reason"] == ""
    assert found["parameter_bytes"] == 4 * params
    assert 8 * params <= found["optimizer_bytes"] <= 8 * params + 64  # two moments and counters
    assert found["needed_bytes"] > 16 * params  # with gradients
    assert found["useful_flops"] <= found["flops"] == 1e12 * found["matmul_seconds"]
    attention, network, head = 4 * 128 * 64, 3 * 128 * 344, 128 * 512
    scores = 2 * 64 * (64 + 64 + 4)  # a token's products with the keys and values of two segments and 4 persistent ones
    assert found["useful_flops"] == pytest.approx(6 * (2 * (attention + network + scores) + head) * 8 * 64, rel=0.01)
    room = 1e9 - found["parameter_bytes"] - found["optimizer_bytes"]
    assert found["rows_that_fit"] == pytest.approx(8 * room / (found["needed_bytes"] - 12 * params), rel=0.01)


def test_what_the_compiler_says_where_there_is_no_room():
    said = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    row = refused(said + "temporaries (26.19G) exceeds available HBM (15.75G). HLO module: jit_step.\nSee", 2**30)
    assert not row["fits"] and row["needed_bytes"] == 26.19 * 2**30 + 2**30
    assert row["reason"].startswith("E1000: ") and row["reason"].endswith("jit_step.")
    row = refused("RESOURCE_EXHAUSTED: Used 42.50G of 15.75G hbm. Exceeded hbm capacity by 26.75G.", 2**30)
    assert row["needed_bytes"] == 42.5 * 2**30 and row["temporary_bytes"] is None
    assert refused("RESOURCE_EXHAUSTED: other", 0)["needed_bytes"] is None


@pytest.mark.parametrize(
    "options, says",
    [
        (["nosuch", "--topology", "v5e:2x2"], "nosuch"),
        (["tiny", "--topology", "v5e:2x2", "--model.dime", "3"], "did you mean --model.dim"),
        (["tiny"], "--topology"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error_of_one_line(options, says, capsys, tmp_path):
    assert main(["plan", *options, "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


@pytest.mark.skipif(tpu.available(), reason="the TPU compiler is installed")
def test_without_the_tpu_compiler_the_plan_says_what_to_install(capsys, tmp_path):
    assert main(["plan", "tiny", "--topology", "v5e:2x2", "--output-dir", str(tmp_path)]) == 2
    assert "pip install 'titans-jax[tpu]'" in capsys.readouterr().err


MESHES = """
import dataclasses, json, sys
import jax
from tests.bench.test_plan import small
from titans_jax.nn import MemoryConfig
from titans_jax.bench import plan
from titans_jax.training.counts import CHIPS, Chip
CHIPS[jax.devices()[0].device_kind] = Chip(1e12, 1e9, 1e9)
experiment = small()
found = {
    mesh: plan.plan(dataclasses.replace(experiment, mesh=mesh), jax.devices()) for mesh in ("data=8", "fsdp=8")
}
for segment in (16, 32):
    memory = MemoryConfig(heads=2, head_dim=64, chunk=16)
    mac = small(block="mac", segment=segment, dtype="bfloat16", remat=True, memory=memory)
    found[f"segment={segment}"] = plan.plan(dataclasses.replace(mac, mesh="fsdp=8"), jax.devices())
odd = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab_size=510), mesh="tensor=8")
print(json.dumps([found, plan.plan(odd, jax.devices())]))
"""


@pytest.mark.slow
def test_plans_of_meshes_say_what_is_shared_and_sent(run_python):
    found, odd = json.loads(run_python("-c", MESHES, devices=8).stdout.splitlines()[-1])
    whole, shared = found["data=8"], found["fsdp=8"]
    assert whole["parameter_bytes"] == 4 * whole["parameters"] and whole["whole"] == ""
    assert shared["parameter_bytes"] < whole["parameter_bytes"] / 7
    assert shared["optimizer_bytes"] < whole["optimizer_bytes"] / 7
    assert "all-gather_bytes" not in whole
    # each weight is gathered once, and each gradient is summed
    assert shared["all-gather_bytes"] == pytest.approx(shared["parameters"] * 4 * 7 / 8, rel=0.05)
    assert whole["all-reduce_bytes"] == pytest.approx(whole["parameter_bytes"] * 2 * 7 / 8, rel=0.05)
    # a layer gathers its weights once forward and once backward, however many segments it has
    few, many = found["segment=32"], found["segment=16"]
    kernels = 2 * 12  # of two layers: attention 4, read 2, memory 3 (its gates are whole), network 3
    assert few["all-gather_count"] == many["all-gather_count"] == 2 * kernels + 2
    assert few["all-gather_bytes"] == many["all-gather_bytes"] < 2 * few["parameters"] * 4
    assert whole["link_seconds"] > 0 and 0 < whole["mfu_bound"] <= 1
    assert "embed" in odd["whole"] and odd["whole_bytes"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not tpu.available(), reason="needs the extra: pip install titans-jax[tpu]")
def test_the_tpu_compiler_plans_a_step_and_refuses_one_without_room(run_python, tmp_path):
    small = ["tiny", "--model.depth", "1", "--topology", "v5e:2x2", "--output-dir", str(tmp_path)]
    for _ in range(2):  # the second time there is a program in the cache of others, which cannot be read
        done = run_python("-m", "titans_jax", "plan", *small, "--json")
        assert "Warning" not in done.stderr
    row = json.loads(done.stdout)["v5e:2x2"]
    assert row["fits"] and row["devices"] == 4 and row["all-gather_count"] > 0 and row["cycles"] > 0
    large = [*small, "--data.batch", "65536", "--json"]
    row = json.loads(run_python("-m", "titans_jax", "plan", *large).stdout)["v5e:2x2"]
    assert not row["fits"] and "HBM" in row["reason"] and row["needed_bytes"] > row["hbm_bytes"]
