"""lm-eval over a tiny model: its numbers are `evaluate`'s and `score`'s."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

pytest.importorskip("lm_eval", reason="needs the extra: pip install titans-jax[eval]")

from titans_jax.data import BYTES
from titans_jax.decode import generate
from titans_jax.evaluation import evaluate
from titans_jax.evaluation.lm_eval import adapter_class, run_tasks, write_tasks
from titans_jax.nn import LM, MemoryConfig, ModelConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # lm-eval's own
]


@pytest.fixture(scope="module")
def model():
    memory = MemoryConfig(rule="linear_attention", chunk=16, heads=1, head_dim=8, conv=0)
    config = ModelConfig(block="lmm", dim=16, depth=1, heads=1, head_dim=8, persistent=0, memory=memory)
    return LM(config, rngs=nnx.Rngs(0))


def asked(*arguments):
    return SimpleNamespace(args=arguments)


def evaluated(model, context, continuation):
    """nats of the continuation, by `evaluate`."""
    tokens = np.concatenate([[BYTES.separator], BYTES.encode(context + continuation)])[None].astype(np.int32)
    mask = np.zeros(tokens[:, 1:].shape, np.float32)
    mask[:, len(BYTES.encode(context)) :] = 1
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}
    found = evaluate(model, [batch], BYTES.byte_lengths)
    return -found["loss"] * found["tokens"]


def test_log_likelihoods_are_those_of_evaluate(model):
    adapter = adapter_class()(model, BYTES)
    pairs = [("Call me", " Ishmael."), ("", "The whale"), ("x" * 70, "yz")]
    found = adapter.loglikelihood([asked(*pair) for pair in pairs])
    np.testing.assert_allclose([value for value, _ in found], [evaluated(model, *pair) for pair in pairs], rtol=1e-5)
    rolling = adapter.loglikelihood_rolling([asked("The whale"), asked("Call me Ishmael.")])
    expected = [evaluated(model, "", text) for text in ("The whale", "Call me Ishmael.")]
    np.testing.assert_allclose(rolling, expected, rtol=1e-5)


def test_what_greedy_decoding_says_is_greedy_and_ends_before_the_stop(model):
    prompt = np.concatenate([[BYTES.separator], BYTES.encode("Call me")])
    said = BYTES.decode(generate(model, prompt[None], length=6, temperature=0)[0])
    adapter = adapter_class()(model, BYTES)
    assert adapter.generate_until([asked("Call me", {"until": [], "max_gen_toks": 6})]) == [said]
    cut = adapter.generate_until([asked("Call me", {"until": [said[2]], "max_gen_toks": 6})])
    assert cut == [said.partition(said[2])[0]]
    ascii_ = said.encode(errors="ignore").decode("ascii", "ignore") == said
    if ascii_:
        assert adapter.loglikelihood([asked("Call me", said)])[0][1]
    with pytest.raises(ValueError, match="decodes greedily"):
        adapter.generate_until([asked("a", {"temperature": 0.5})])


def test_our_tasks_run_without_a_network(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    names = write_tasks(tmp_path, ["passkey", "babilong_person"], size=320, count=3, hay="the sea and the sky ")
    found = run_tasks(model, BYTES, tmp_path, names)
    lines = [json.loads(line) for line in (tmp_path / "babilong_person.jsonl").read_text().splitlines()]
    mean = np.mean([evaluated(model, line["text"], line["answer"]) for line in lines])
    assert found["titans_babilong_person"]["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-4)
    assert found["titans_passkey"]["acc"] == 0  # untrained
    with pytest.raises(ValueError, match="unknown task titans_nothing"):
        run_tasks(model, BYTES, tmp_path, ["titans_nothing"])
