"""Many texts at once: each as if it were alone, whatever else the slots hold."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax import nnx

from tests.nn.members import jit, random_params
from titans_jax.decode import NotFinite, Request, Sampling, draw, filters, generate, rows, serve
from titans_jax.metrics import Footprint
from titans_jax.nn import LM, CMSConfig, MemoryConfig, ModelConfig
from titans_jax.training import define

VOCABULARY, LONGEST = 32, 40
BLOCKS = ["mac", *(pytest.param(block, marks=pytest.mark.slow) for block in ("lmm", "mag", "hope", "transformer,mac"))]


def model_of(block: str) -> LM:
    memory = MemoryConfig(rule="titans_linear", heads=1, head_dim=8, chunk=8, conv=2)
    sizes = dict(
        cms=CMSConfig(periods=(8, 16)),
        dim=16,
        depth=4 if "," in block else 2,
        heads=2,
        head_dim=8,
        segment=8,
        window=8,
        persistent=1,
    )
    definition = define(ModelConfig(block=block, vocab_size=VOCABULARY, memory=memory, **sizes))
    shapes = definition.shapes
    return definition.model(jax.tree.map(jax.numpy.asarray, random_params(shapes)))


def prompt(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)


def served(model: LM, requests: list[Request], slots: int) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in requests]
    for number, token in serve(model, requests, slots=slots, segment=8):
        written[number].append(token)
    return written


REQUESTS = [
    Request(prompt(3, 0), 9, Sampling(temperature=0)),
    Request(prompt(21, 1), 6, Sampling(temperature=1.5, top_k=7), jax.random.key(1)),
    Request(prompt(8, 2), 12, Sampling(temperature=0.7, top_p=0.8), jax.random.key(2)),
    Request(prompt(17, 3), 5, Sampling(temperature=0)),
    Request(prompt(1, 4), 0, Sampling(temperature=0)),
    Request(prompt(1, 5), 14, Sampling(temperature=1.0, min_p=0.05), jax.random.key(3)),
    Request(prompt(5, 6), 1, Sampling(temperature=1.0), jax.random.key(4)),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_each_text_is_what_one_call_of_the_model_says(block):
    """Fewer slots than texts, of other lengths, read and written meanwhile; against teacher-forced calls of each."""
    model = model_of(block)
    written = served(model, REQUESTS, slots=3)
    assert [len(line) for line in written] == [request.length for request in REQUESTS]
    texts = np.zeros((len(REQUESTS), LONGEST), np.int32)
    for row, request, line in zip(texts, REQUESTS, written, strict=True):
        row[: len(request.prompt) + len(line)] = [*request.prompt, *line]
    logits = jit(lambda tokens: model(tokens, model.init_state(len(texts)))[0])(texts)
    drawn = jit(draw)
    for request, line, said in zip(REQUESTS, written, logits, strict=True):
        for i, token in enumerate(line):
            key = jax.random.fold_in(jax.random.key(0) if request.key is None else request.key, i)
            at = said[len(request.prompt) - 1 + i]
            expected = drawn(at[None], key[None], filters([request.sampling]))
            assert token == int(expected[0]), f"prompt of {len(request.prompt)}, token {i}"


@pytest.fixture(scope="module")
def model() -> LM:
    return model_of("lmm")


def test_a_model_too_deep_to_be_written_out_writes_the_same(model, monkeypatch):
    want = served(model, REQUESTS[:3], slots=2)
    monkeypatch.setattr(rows, "DEEPEST", 1)
    monkeypatch.setattr(LM, "by_layer", None)
    assert served(model, REQUESTS[:3], slots=2) == want


def test_a_slot_is_taken_as_soon_as_it_is_free(model):
    taken: list[int] = []

    def coming() -> Iterator[Request]:
        for number, length in enumerate((2, 6, 3, 1)):
            taken.append(number)
            yield Request([number], length, Sampling(temperature=0))

    seen = []
    for number, _ in serve(model, coming(), slots=3, segment=8):
        seen.append((number, len(taken)))
    assert [number for number, _ in seen] == [0, 1, 2, 0, 1, 2, 1, 2, 3, 1, 1, 1]
    assert [held for _, held in seen][:6] == [3] * 6  # the fourth is not asked for before there is room


def test_a_text_ends_where_it_is_stopped_and_others_go_on(model):
    free = served(model, [Request([1, 2], 8, Sampling(temperature=0)), Request([3], 8, Sampling(temperature=0))], 3)
    heard: list[int] = []

    def stop(token: int) -> bool:
        heard.append(token)
        return len(heard) == 3

    requests = [Request([1, 2], 8, Sampling(temperature=0), stop=stop), Request([3], 8, Sampling(temperature=0))]
    assert served(model, requests, 3) == [free[0][:3], free[1]] and heard == free[0][:3]
    heard.clear()
    assert served(model, [Request([1, 2], 2, Sampling(temperature=0), stop=stop)], 3) == [heard] == [free[0][:2]]


def test_texts_of_new_lengths_compile_nothing(model):
    graphdef, params = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(params, jax.devices()[0]))  # as a checkpoint's are: bound to a device
    first = serve(placed, [Request(prompt(9, 0), 9, Sampling(temperature=0))], slots=3, segment=8)
    next(first)
    with Footprint(0) as footprint:
        list(first)
        served(placed, [Request(prompt(n, n), n, Sampling(temperature=0)) for n in (2, 9, 30, 13)], slots=3)
    assert footprint.compiled == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 1, Sampling(temperature=0)), "at least one token"),
        (Request([[1]], 1, Sampling(temperature=0)), r"shape \[1, 1\]"),
        (Request([VOCABULARY], 1, Sampling(temperature=0)), f"token {VOCABULARY}, outside"),
        (Request([1], -1, Sampling(temperature=0)), "length is -1"),
        (Request([1], 1), "sampling needs a key"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(model, request_, message):
    with pytest.raises(ValueError, match=message):
        served(model, [request_], 3)


def test_a_text_that_is_not_finite_ends_with_an_error_and_the_others_go_on() -> None:
    """A token's embedding is NaN: texts with it end, and the slot serves the next text."""
    model = model_of("mac")
    good = [[1, 2, 3], [4], [5, 6]]
    wanted = generate(model, good, length=6, temperature=0, segment=8, slots=2)
    model.embedding[...] = model.embedding[...].at[VOCABULARY - 1].set(np.nan)
    prompts = [good[0], [7, VOCABULARY - 1], good[1], [VOCABULARY - 1] * 9, good[2]]
    with pytest.raises(NotFinite, match="rows 1, 3: the model's logits are not finite") as error:
        generate(model, prompts, length=6, temperature=0, segment=8, slots=2)
    found = error.value.written
    assert [len(line) for line in found] == [6, 0, 6, 0, 6]
    for line, expected in zip((found[0], found[2], found[4]), wanted, strict=True):
        np.testing.assert_array_equal(line, expected)


def test_a_row_of_a_stream_that_is_not_finite_stays_so() -> None:
    """Its memory undoes the chunk and attention passes the token, so that later logits are finite."""
    model = model_of("mac")
    model.embedding[...] = model.embedding[...].at[5].set(np.nan)
    following = rows.stream(model, [[1, 5]], Sampling(temperature=0), segment=8)
    assert [int(next(following)[0]) for _ in range(24)] == [-1] * 24


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_drawn_from_logits_that_are_not_finite(temperature: float) -> None:
    logits = np.zeros((5, 4), np.float32)
    logits[1, 2], logits[2, 0], logits[3], logits[4, 1:] = np.nan, np.inf, -np.inf, -np.inf
    keys = jax.random.split(jax.random.key(0), 5)
    tokens = draw(jax.numpy.asarray(logits), keys, filters([Sampling(temperature)] * 5))
    assert tokens[0] >= 0 and tokens[1:].tolist() == [-1, -1, -1, 0]
