"""Rows that tell a fact: what is written, where, what it weighs, and in which rows."""

import re

import numpy as np

from titans_jax.data import BYTES, DataConfig, held_out_batches, train_batches
from titans_jax.data.facts import MENTIONS, WEIGHT, tell

SEA = np.frombuffer(b"the sea and the sky " * 20, np.uint8).astype(np.int32)
MENTION = re.compile(r" The key: (\d{3})\. ")


def test_a_fact_is_told_and_mentioned_again_and_only_later_keys_weigh_more():
    for seed in range(20):
        tokens, weights = tell(SEA[:257], BYTES, np.random.default_rng(seed))
        text = BYTES.decode(tokens)
        found = list(MENTION.finditer(text))
        assert len(found) == MENTIONS and len({match[1] for match in found}) == 1 and len(weights) == 256
        heavy = [i for match in found[1:] for i in range(match.start(1) - 1, match.end(1))]
        assert (np.flatnonzero(weights == WEIGHT) + 1 == heavy).all() and set(weights) == {1, WEIGHT}
        elsewhere = np.ones(257, bool)
        for match in found:
            elsewhere[slice(*match.span())] = False
        assert (tokens[elsewhere] == SEA[:257][elsewhere]).all()
    assert len(MENTION.findall(BYTES.decode(tell(SEA[:38], BYTES, np.random.default_rng(0))[0]))) == 2
    short, weights = tell(SEA[:12], BYTES, np.random.default_rng(0))
    assert (short == SEA[:12]).all() and (weights == 1).all()


def test_a_share_of_the_training_rows_tells_one_and_held_out_text_none(tmp_path):
    config = DataConfig(sequence=256, batch=32, facts=0.25, cache_dir=str(tmp_path))
    plain = DataConfig(sequence=256, batch=32, cache_dir=str(tmp_path))
    batches = [next(iter(train_batches(each, seed=0))) for each in (config, plain)]
    told = [bool(MENTION.search(BYTES.decode(row))) for row in batches[0]["inputs"]]
    assert 2 <= sum(told) <= 14
    for i, tells in enumerate(told):
        assert (batches[0]["inputs"][i] == batches[1]["inputs"][i]).all() == (not tells)
        assert (batches[0]["mask"][i] == 1).all() == (not tells)
    assert (batches[0]["inputs"][:, 1:] == batches[0]["targets"][:, :-1]).all()
    again = next(iter(train_batches(config, seed=0)))
    assert all((again[name] == batches[0][name]).all() for name in again)
    for one, other in zip(held_out_batches(config, limit=2), held_out_batches(plain, limit=2), strict=True):
        assert all((one[name] == other[name]).all() for name in one)


def test_a_row_of_several_documents_tells_none(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text("the sea and the sky " * (3 if i % 2 else 40), encoding="utf-8")
    config = DataConfig(str(folder), sequence=128, batch=16, packing="documents", facts=1.0, cache_dir=str(tmp_path))
    batch = next(iter(train_batches(config, seed=0)))
    for row, reset, mask in zip(batch["inputs"], batch["reset"], batch["mask"], strict=True):
        whole = reset.sum() == 1 and (mask > 0).all()
        assert bool(MENTION.search(BYTES.decode(row))) == whole
