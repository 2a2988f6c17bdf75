"""Invalid configurations raise an error of one line, before anything is compiled."""

import dataclasses

import pytest
from flax import nnx

from titans_jax.memory import unit_rate
from titans_jax.nn import LM, MemoryConfig, ModelConfig
from titans_jax.nn.config import max_rate_of, rule_of

GOOD = ModelConfig(block="mac", segment=16, memory=MemoryConfig(chunk=8))
WRONG = {
    "block": (dict(block="mak"), r"model\.block: 'mak' is unknown; known are lmm, mac, mag, mal, transformer, hope"),
    "pattern": (dict(block="mac,,mac"), r"model\.block: '' is unknown"),
    "depth": (dict(block="transformer,mac", depth=3), r"model\.depth: 3 is not a multiple of 2, the blocks of"),
    "segment": (dict(segment=12), r"model\.segment: 12 is not a multiple of model\.memory\.chunk 8"),
    "odd": (dict(head_dim=7), r"model\.head_dim: 7 is odd; rotary positions rotate pairs"),
    "residual": (dict(block="transformer", weight_residual=True), r"model\.weight_residual: needs memory layers"),
    "mixed residual": (dict(block="mac,mag", weight_residual=True), r"of one type, not 'mac,mag'"),
    "persistent": (dict(persistent=-1), r"model\.persistent .* must be 0 or more"),
    **{
        name: ({name: 0}, rf"model\.{name}: 0; it must be above 0")
        for name in ("vocab_size", "dim", "depth", "heads", "head_dim", "window", "segment", "context", "ff_mult")
    },
}
WRONG_MEMORY = {
    "rule": (dict(rule="titan"), r"model\.memory\.rule: 'titan' is unknown; known are titans, "),
    "implementation": (dict(implementation="fast"), r"model\.memory\.implementation: 'fast' is unknown; known are"),
    "engine": (
        dict(rule="deltanet", implementation="chunked"),
        r"model\.memory: deltanet cannot run .*: chunked: ",
    ),
    "factors": (
        dict(implementation="recurrent", matmul_dtype="bfloat16"),
        r"titans cannot run .* no factor",
    ),
    "shards": (
        dict(rule="memora", shard=8, local_chunks=(4,)),
        r"memora cannot run with these options: tnt: the link",
    ),
    "momentum": (dict(momentum=1.0), r"model\.memory\.momentum: 1\.0 is not between 0 and 1"),
    "forget": (dict(forget=0.0), r"model\.memory\.forget: 0\.0 is not between 0 and 1"),
    "clip": (dict(clip=-1.0), r"model\.memory\.clip: -1\.0; it must be above 0"),
    "conv": (dict(conv=-1), r"model\.memory\.conv must be 0 or more"),
    **{
        name: ({name: 0}, rf"model\.memory\.{name}: 0; it must be above 0")
        for name in ("depth", "expansion", "chunk", "heads", "head_dim", "max_rate")
    },
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_an_invalid_model_is_refused(changes, message):
    refused(dataclasses.replace(GOOD, **changes), message)


@pytest.mark.parametrize("changes, message", WRONG_MEMORY.values(), ids=WRONG_MEMORY)
def test_an_invalid_memory_is_refused(changes, message):
    refused(dataclasses.replace(GOOD, memory=dataclasses.replace(GOOD.memory, **changes)), message)


def test_a_rule_of_ones_own_is_named_by_its_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from titans_jax.memory import presets\nown = presets.deltanet")
    monkeypatch.syspath_prepend(str(tmp_path))
    own, ours = (rule_of(MemoryConfig(rule=name, head_dim=8)) for name in ("mine:own", "deltanet"))
    assert own.learner.grad_at == ours.learner.grad_at == "previous" and own.relative
    for name, reason in (("mine:other", "no attribute 'other'"), ("yours:own", "No module named 'yours'")):
        with pytest.raises(ValueError, match=f"model.memory.rule: '{name}': .*{reason}.* is its folder on PYTHONPATH"):
            ModelConfig(memory=MemoryConfig(rule=name)).check()


def test_a_weight_residual_needs_gradients_at_the_chunk_start():
    memory = dataclasses.replace(GOOD.memory, rule="deltanet")
    refused(
        dataclasses.replace(GOOD, memory=memory, weight_residual=True), r"model\.weight_residual: deltanet takes no"
    )


@pytest.mark.parametrize("sizes", [dict(chunk=12), dict(local_chunks=(3,))], ids=str)
def test_tnt_chunks_divide_each_other(sizes):
    memory = dataclasses.replace(GOOD.memory, **dict(chunk=16, shard=8, local_chunks=(4,)) | sizes)
    refused(dataclasses.replace(GOOD, block="lmm", memory=memory), r"model\.memory\.chunk: .* a multiple of the next")


@pytest.mark.parametrize("changes", [dict(weight_residual=True), dict(block="hope")], ids=str)
def test_tnt_excludes_weight_residual_and_hope(changes):
    memory = dataclasses.replace(GOOD.memory, chunk=16, shard=8, local_chunks=(4,))
    refused(
        dataclasses.replace(GOOD, **dict(block="lmm", memory=memory) | changes), r"model\.memory\.local_chunks: TNT"
    )


def test_decay_per_channel_follows_the_rules_paper():
    assert [MemoryConfig(rule=rule).per_channel for rule in ("gla", "hgrn2", "rwkv7", "retnet")] == [True] * 3 + [False]
    assert not MemoryConfig(rule="gla", channel_keep=False).per_channel
    assert MemoryConfig(rule="titans", channel_keep=True).per_channel


def refused(config: ModelConfig, message: str) -> None:
    GOOD.check()
    with pytest.raises(ValueError, match=message) as error:
        LM(config, rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule, units", [("titans", 4), ("ttt_linear", 4), ("deltanet", 1), ("dgd", 1), ("atlas", 1)])
def test_rates_go_further_where_the_output_is_normed_and_steps_are_gradients(rule, units):
    config = MemoryConfig(rule=rule)
    unit = unit_rate(rule_of(config), config.chunk, equal=1)
    assert max_rate_of(config) == units * unit
    assert max_rate_of(dataclasses.replace(config, max_rate=3.0)) == 3 * unit
