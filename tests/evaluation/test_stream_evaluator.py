"""A text read to its end: honest figures, the same however often reading was interrupted, in memory of one size."""

import io
import json

import jax
import numpy as np
import pytest
from flax import nnx

from titans_jax import metrics
from titans_jax.checkpoint import CheckpointError
from titans_jax.data import BYTES, load_documents, token_blocks
from titans_jax.decode import streaming
from titans_jax.decode.streaming import StreamState
from titans_jax.evaluation import StreamEvaluator, curves, evaluate, load_state
from titans_jax.nn import LM, MemoryConfig, ModelConfig
from titans_jax.training import define

SEGMENT, WINDOW = 16, 40
SETTINGS = {"segment": SEGMENT, "window": WINDOW}
# Random parameters amplify the rounding of larger rates from piece to piece.
MEMORY = MemoryConfig(rule="titans_linear", heads=1, head_dim=8, chunk=8, conv=0, max_rate=0.1)
DEFINITION = define(ModelConfig(block="lmm", dim=16, depth=2, persistent=0, memory=MEMORY))
TEXT = "".join(load_documents("moby-dick")[:2]).encode()[: 20 * SEGMENT + 5].decode().encode()


def model_of(seed: int) -> LM:
    """With parameters at no special point: drawing them as training does takes longer to compile than all else here."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(DEFINITION.init, jax.random.key(0))
    return DEFINITION.model(jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes))


@pytest.fixture(scope="module")
def model() -> LM:
    return model_of(0)


def begin(folder, model, start: StreamState | None = None, **settings) -> StreamEvaluator:
    start = streaming.init(model, BYTES.separator) if start is None else start
    return StreamEvaluator(folder, model, start, BYTES.byte_lengths, SETTINGS | settings)


def run(
    evaluator: StreamEvaluator, text: bytes = TEXT, stop_after: int | None = None, save_every: int = 100
) -> StreamEvaluator:
    blocks = token_blocks(io.BytesIO(text), BYTES, SEGMENT, evaluator.position)
    with evaluator.log:
        for count, _ in enumerate(evaluator.evaluate(blocks, save_every=save_every), 1):
            if count == stop_after:
                evaluator.save()
                break
    return evaluator


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> StreamEvaluator:
    return run(begin(tmp_path_factory.mktemp("whole"), model))


def test_figures_are_those_of_evaluation(model, whole):
    tokens = np.concatenate([[BYTES.separator], BYTES.encode(TEXT.decode())]).astype(np.int32)
    whole_blocks = tokens[: 20 * SEGMENT + 1]
    batches = [
        {"inputs": x[None, :-1], "targets": x[None, 1:], "mask": np.ones((1, SEGMENT), np.int32)}
        for x in (whole_blocks[at : at + SEGMENT + 1] for at in range(0, 20 * SEGMENT, SEGMENT))
    ]
    expected = evaluate(model, batches, BYTES.byte_lengths, reset="stream")
    assert whole.total.tokens == whole.total.bytes == len(TEXT) == 20 * SEGMENT + 5
    lines = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [48, 96, 144, 192, 240, 288, 325] == [line["bytes"] for line in lines]
    sizes = np.diff([0, *(line["step"] for line in lines)])
    rest = run(begin(whole.folder.with_name("cut"), model), TEXT[: 20 * SEGMENT])
    assert rest.total.means()["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert rest.total.means()["accuracy"] == expected["accuracy"]
    for name in ("loss", "bits_per_byte", "layer_1/surprise"):
        mean = float(np.dot([line[name] for line in lines], sizes)) / len(TEXT)
        assert whole.total.means()[name] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("stops", [[1], [7, 1, 4]])
def test_an_interrupted_stream_is_one_that_was_not(model, whole, tmp_path, stops):
    for stop in stops:
        found = run(begin(tmp_path, model), stop_after=stop)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 100000}\n{"st')  # what a killed run may leave behind
    assert found.total.tokens == sum(stops) * SEGMENT
    found = run(begin(tmp_path, model))
    assert (found.total, found.position) == (whole.total, whole.position)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.state), jax.device_get(whole.state))
    assert run(begin(tmp_path, model)).total == whole.total  # there is nothing left


def test_a_text_that_has_grown_is_read_on_where_it_ended(model, tmp_path):
    grown = TEXT + TEXT
    run(begin(tmp_path / "grown", model))  # ends inside a chunk
    found = run(begin(tmp_path / "grown", model), grown).total
    expected = run(begin(tmp_path / "at_once", model), grown).total
    assert found.tokens == expected.tokens and found.nll == pytest.approx(expected.nll, rel=1e-6)
    assert found.surprise == pytest.approx(expected.surprise, rel=1e-5)


def test_a_saved_state_forks(model, whole, tmp_path):
    like = streaming.init(model, BYTES.separator)
    ends = []
    for name, text in (("one", b"it was the whale"), ("two", b"a quite other text"), ("again", b"it was the whale")):
        ends.append(run(begin(tmp_path / name, model, load_state(whole.folder, model, like)), text).total.nll)
    assert ends[0] == ends[2] != ends[1]
    fresh = run(begin(tmp_path / "fresh", model), b"it was the whale").total.nll
    joined = run(begin(tmp_path / "joined", model), TEXT + b"it was the whale").total.nll
    assert ends[0] != fresh and ends[0] == pytest.approx(joined - whole.total.nll, rel=1e-4)


def test_the_state_of_another_model_is_refused(model, whole, tmp_path):
    other = model_of(1)
    with pytest.raises(ValueError, match="holds the state of another model"):
        load_state(whole.folder, other, streaming.init(other, BYTES.separator))
    with pytest.raises(ValueError, match="holds a stream with model"):
        begin(whole.folder, other)
    with pytest.raises(ValueError, match="holds a stream with segment 16, not 8"):
        begin(whole.folder, model, segment=8)
    with pytest.raises(CheckpointError, match="is not the folder of a stream"):
        load_state(tmp_path, model, streaming.init(model, BYTES.separator))


def test_what_is_not_finite_is_counted_and_no_mean_is_given(model, tmp_path):
    start = streaming.init(model, BYTES.separator)
    spoilt = start._replace(model=jax.tree.map(lambda x: x * np.nan if x.dtype == np.float32 else x, start.model))
    evaluator = begin(tmp_path, model)
    evaluator.state = spoilt
    with pytest.raises(FloatingPointError, match="not finite"):
        run(evaluator)
    assert evaluator.total.non_finite > 0 and np.isnan(evaluator.total.means()["loss"])
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] is None
    assert curves(tmp_path)["loss"][0] is None


def test_nothing_is_compiled_once_it_is_warm(model, tmp_path):
    graphdef, params = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(params, jax.devices()[0]))  # as a checkpoint's are: bound to a device
    evaluator = begin(tmp_path, placed)
    evaluator.compile()
    with metrics.Footprint(1) as footprint, evaluator.log:
        blocks = token_blocks(io.BytesIO(TEXT), BYTES, SEGMENT)
        for _ in evaluator.evaluate(blocks, save_every=1 << 20):
            footprint.step()
    assert footprint.found()["compilations_after_warm_up"] == 0


def test_curves_are_means_over_stretches(whole):
    lines = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    found = curves(whole.folder, points=3)
    assert found["tokens"] == [144, 288, 325]
    first = [line["layer_0/surprise"] for line in lines[:3]]
    assert found["layer_0/surprise"][0] == pytest.approx(sum(first) / 3)
    assert curves(whole.folder)["tokens"] == [line["step"] for line in lines]
