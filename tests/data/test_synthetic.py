import numpy as np
import pytest

from titans_jax.data import needle_splits, needles, recall
from titans_jax.data.synthetic import NEEDLE, PAD


def test_each_sample_has_one_needle_where_the_label_says_and_padding_after_its_length():
    samples = needles(0, 500)
    inside = np.arange(256) < samples.length[:, None]
    assert set(samples.length) == {64, 128, 256}
    assert ((samples.tokens == PAD) == ~inside).all()
    assert ((samples.tokens == NEEDLE).sum(1) == 1).all()
    np.testing.assert_array_equal((samples.tokens == NEEDLE).argmax(1), samples.position)
    assert samples.tokens.max() == NEEDLE
    hay = samples.tokens[inside & (samples.tokens != NEEDLE)]
    np.testing.assert_array_equal(np.unique(hay), np.arange(1, 127))


def test_needles_lie_evenly_over_the_length():
    samples = needles(1, 8000, (64,))
    quarters = np.bincount(samples.position // 16, minlength=4)
    assert quarters.sum() == 8000
    assert (abs(quarters - 2000) < 200).all()
    assert (samples.position.min(), samples.position.max()) == (0, 63)


def test_splits_are_seeded_sized_and_disjoint():
    splits, again, other = needle_splits(), needle_splits(42), needle_splits(43)
    assert [len(part.length) for part in splits] == [8000, 1000, 1000]
    np.testing.assert_array_equal(splits[2].tokens, again[2].tokens)
    assert (splits[2].tokens != other[2].tokens).any()
    rows = [{row.tobytes() for row in part.tokens} for part in splits]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 10_000


def test_recall_asks_for_the_value_shown_with_the_key():
    batch = recall(0, 20, pairs=8, queries=5, symbols=16)
    inputs, targets, mask = batch["inputs"], batch["targets"], batch["mask"]
    assert inputs.shape == (20, 2 * (8 + 5) - 1)
    np.testing.assert_array_equal(mask.sum(1), 5)
    for row in range(20):
        shown = dict(zip(inputs[row, 0:16:2].tolist(), inputs[row, 1:16:2].tolist(), strict=True))
        assert len(shown) == 8
        asked = np.flatnonzero(mask[row])
        assert len(set(inputs[row, asked])) == 5
        assert [shown[key] for key in inputs[row, asked].tolist()] == targets[row, asked].tolist()
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.min() >= 1 and targets.max() <= 32


def test_the_same_seed_gives_the_same_batch_and_another_another():
    first, again, other = (recall(seed, 4, pairs=4, queries=4)["inputs"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_impossible_sizes_are_refused():
    for wrong in (
        lambda: needles(0, 0),
        lambda: needles(0, 5, (0,)),
        lambda: needle_splits(0, (5, 0)),
        lambda: recall(0, 1, pairs=3, queries=4),
        lambda: recall(0, 1, pairs=5, queries=1, symbols=4),
    ):
        with pytest.raises(ValueError, match="got "):
            wrong()
