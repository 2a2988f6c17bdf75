"""Made-up tasks: every answer follows from what was read, by a solver that is not the generator."""

import re

import numpy as np
import pytest

from titans_jax.data import BYTES, DataConfig, held_out_batches, tasks, train_batches
from titans_jax.data.tasks import TEXT_TASKS, TOKEN_TASKS, question, row

HAY = "the sea and the sky and a white whale that nobody saw again "
SEEDS = range(12)


def lookup(asked, numbers):
    return "".join(f" {number}" for name in asked for other, number in numbers if other == name)


def numbers(text, asked):
    said = re.findall(r"The number of (\w+) is (\d+)\.", text)
    return lookup(re.findall(r"[A-Z]\w+", asked)[1:], said)


def variables(text, asked):
    value, names = re.search(r"\d+", asked)[0], []
    for name, source in re.findall(r"Let (\w) = (\w+)\.", text):
        if source == value or source in names:
            names.append(name)
    return "".join(f" {name}" for name in names)


def person(text, asked):
    who = re.search(r"Where is (\w+)\?", asked)[1]
    return " " + re.findall(rf"{who} walked to the (\w+)\.", text)[-1]


def thing(text, asked):
    what = re.search(r"Where is the (\w+)\?", asked)[1]
    holder = re.search(rf"(\w+) took the {what}\.", text)[1]
    return " " + re.findall(rf"{holder} walked to the (\w+)\.", text)[-1]


def pass_key(text, asked):
    return " " + re.search(r"The pass key is (\d+)\. Keep", text)[1]


SOLVERS = {
    "passkey": pass_key,
    "niah_single": numbers,
    "niah_multikey": numbers,
    "niah_multivalue": numbers,
    "niah_multiquery": numbers,
    "variables": variables,
    "babilong_person": person,
    "babilong_thing": thing,
}


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_text_says_the_answer_and_has_the_length_that_was_asked_for(name):
    answers = set()
    for seed in SEEDS:
        made = question(name, seed, 400, HAY)
        assert len(made.context + made.question + made.answer) == 400
        assert made.answer == SOLVERS[name](made.context, made.question) + "."
        assert made == question(name, seed, 400, HAY)
        answers.add(made.answer)
    assert len(answers) > 4
    if name != "passkey":
        assert "white whale" in made.context


def test_facts_lie_anywhere():
    places = [question("niah_single", seed, 400, HAY).context.index("The number") for seed in range(200)]
    assert min(places) < 40 and max(places) > 310 and 140 < np.mean(places) < 210


LANGUAGES = {
    "parity": lambda prefix: prefix.count("b") % 2,
    "even": lambda prefix: re.fullmatch("(aa)*", prefix) is not None,
    "abab": lambda prefix: re.fullmatch("(abab)*", prefix) is not None,
    "counted": lambda prefix: prefix == "a" * (len(prefix) // 2) + "b" * (len(prefix) // 2),
    "modular": lambda prefix: from_left(prefix),
}


def from_left(prefix):
    value = int(prefix[0])
    for sign, digit in re.findall(r"([-+*])(\d)", prefix):
        value = eval(f"{value} {sign} {digit}")
    return value % 5


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_label_says_whether_the_prefix_is_a_word(name):
    labels = []
    for seed in SEEDS:
        made = row(name, seed, 24, BYTES)
        text = bytes(made.inputs.astype(np.uint8)).decode()
        expected = [ord("0") + int(LANGUAGES[name](text[: i + 1])) for i in range(24)]
        np.testing.assert_array_equal(made.targets, expected)
        assert made.mask.all()
        labels += expected
    assert len(set(labels)) == (5 if name == "modular" else 2)


def test_what_is_recalled_was_shown():
    for seed in SEEDS:
        made = row("mqar", seed, 64, BYTES)
        shown = dict(zip(made.inputs[:16:2].tolist(), made.inputs[1:16:2].tolist(), strict=True))
        asked = np.flatnonzero(made.mask)
        assert [shown[key] for key in made.inputs[asked].tolist()] == made.targets[asked].tolist() and len(asked) == 8


@pytest.mark.parametrize("name", ["in_context_recall", "noisy_recall"])
def test_a_value_counts_where_its_key_was_shown_before(name):
    counted = noise = 0
    for seed in SEEDS:
        made = row(name, seed, 64, BYTES)
        shown = {}
        for i in range(0, 64, 2):
            key, value = int(made.inputs[i]), int(made.targets[i])
            assert made.mask[i] == (key in shown and key < 130)
            if made.mask[i]:
                assert shown[key] == value
            shown[key] = value
            noise += key >= 130
        counted += made.mask.sum()
    assert counted > 100 and (noise > 60) == (name == "noisy_recall")


def test_symbols_are_copied_in_their_order_and_facts_never_change():
    facts = {}
    for seed in SEEDS:
        made = row("selective_copy", seed, 40, BYTES)
        before = made.inputs[: np.flatnonzero(made.mask)[0]]
        np.testing.assert_array_equal(made.targets[made.mask > 0], before[before > 0])
        made = row("memorisation", seed, 40, BYTES)
        for key, value in zip(made.inputs[::2].tolist(), made.targets[::2].tolist(), strict=True):
            assert facts.setdefault(key, value) == value
        assert made.mask[::2].all() and not made.mask[1::2].any()


def test_a_row_of_text_counts_the_answers_alone():
    made = row("passkey", 0, 480, BYTES)
    asked = question("passkey", 0, 480)
    text = bytes(made.inputs[1:].astype(np.uint8)).decode()
    assert made.inputs[0] == BYTES.separator and text == (asked.context + asked.question + asked.answer)[:-1]
    assert bytes(made.targets[made.mask > 0].astype(np.uint8)).decode() == 6 * asked.answer
    ends = [text[:i].endswith(asked.question) for i in np.flatnonzero(np.diff(made.mask, prepend=0) > 0)]
    assert ends == [True] * 6


@pytest.mark.parametrize("name", [*TEXT_TASKS, *TOKEN_TASKS])
def test_every_task_gives_rows_within_the_bytes(name):
    made = row(name, (0, 7), 400, BYTES, HAY)
    assert made.inputs.shape == made.targets.shape == made.mask.shape == (400,)
    assert 0 <= made.inputs.min() and made.inputs.max() <= 255 and made.mask.sum() > 0
    assert (made.targets[made.mask > 0] < 255).all()
    np.testing.assert_array_equal(row(name, (0, 7), 400, BYTES, HAY).inputs, made.inputs)
    assert (row(name, (1, 7), 400, BYTES, HAY).inputs != made.inputs).any()


def test_batches_of_a_task_resume_and_never_show_what_is_held_out():
    config = DataConfig(task="niah_single", sequence=160, batch=4)
    batches = train_batches(config, seed=0)
    seen = [next(batches) for _ in range(3)]
    again = train_batches(config, seed=0)
    next(again)
    state = again.get_state()
    third = train_batches(config, seed=0)
    third.set_state(state)
    np.testing.assert_array_equal(next(third)["inputs"], seen[1]["inputs"])
    assert (next(train_batches(config, seed=1))["inputs"] != seen[0]["inputs"]).any()
    [held_out] = held_out_batches(config, limit=1)
    assert {name: x.dtype for name, x in held_out.items()} == {name: x.dtype for name, x in seen[0].items()}
    trained = {line.tobytes() for batch in seen for line in batch["inputs"]}
    assert not trained & {line.tobytes() for line in held_out["inputs"]}
    assert sum(len(batch["inputs"]) for batch in held_out_batches(config)) == 1024


def test_what_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"data\.task: 'passky' is unknown; known are passkey, niah.*; did you mean passkey\?"
    ):
        DataConfig(task="passky")
    with pytest.raises(ValueError, match="do not fit into .* characters; raise data.sequence by"):
        row("variables", 0, 60, BYTES, HAY)
    with pytest.raises(ValueError, match="parity is a task of tokens"):
        tasks.question("parity", 0, 60)
