import ast
import dataclasses
import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest

from titans_jax.data import BYTES, DataConfig, held_out_batches, load_streams, steps_an_epoch, train_batches
from titans_jax.data.batches import Loader, document_layout, stream_layout

PACKINGS = ["stream", "documents"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for index, size in enumerate(rng.integers(1, 300, 60)):
        # No two documents, and no two places in one, share a letter sequence of any length worth matching.
        (folder / f"{index:03}.txt").write_text("".join(map(chr, rng.integers(0x21, 0x7F, size))))
    return folder


@pytest.fixture
def config(corpus, tmp_path):
    return DataConfig(
        corpus=str(corpus), sequence=64, batch=4, held_out=0.2, align=16, cache_dir=str(tmp_path), workers=0
    )


def equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def scored(batches):
    """The counted (input, target) pairs, as a sorted array."""
    batches = list(batches)
    pairs = [np.stack([b[name][b["mask"] > 0] for name in ("inputs", "targets")], 1) for b in batches]
    return np.asarray(sorted(map(tuple, np.concatenate(pairs).tolist())))


def transitions(stream):
    """The (input, target) pairs of a whole stream, as a sorted array."""
    return np.asarray(sorted(map(tuple, np.stack([stream.tokens[:-1], stream.tokens[1:]], 1).tolist())))


def epoch(config, seed=0):
    """The batches of exactly one epoch of training, the repeated rows of its last batch cut off."""
    rows = Loader(load_streams(config)[0], config).layout.rows
    batches = list(itertools.islice(train_batches(config, seed=seed), -(-rows // config.batch)))
    joined = {name: np.concatenate([batch[name] for batch in batches])[:rows] for name in batches[0]}
    return joined


def test_an_epoch_has_every_row_once_or_nearly(config):
    rows = Loader(load_streams(config)[0], config).layout.rows
    assert 4 * (steps_an_epoch(config) - 1) < rows <= 4 * steps_an_epoch(config)


@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_have_the_promised_types(config, packing):
    batch = next(train_batches(dataclasses.replace(config, packing=packing), seed=0))
    kinds = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert kinds == {
        "inputs": ("int32", (4, 64)),
        "targets": ("int32", (4, 64)),
        "mask": ("float32", (4, 64)),
        "reset": ("bool", (4, 64)),
    }


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_and_the_held_out_text_count_every_target_once(config, packing):
    config = dataclasses.replace(config, packing=packing)
    train, kept, _ = load_streams(config)
    np.testing.assert_array_equal(scored([epoch(config)]), transitions(train))
    np.testing.assert_array_equal(scored(held_out_batches(config)), transitions(kept))


def test_held_out_bytes_are_the_held_out_text(config):
    _, kept, tokenizer = load_streams(config)
    count = sum((tokenizer.byte_lengths[b["targets"]] * b["mask"]).sum() for b in held_out_batches(config))
    assert count == len(tokenizer.decode(kept.tokens).encode())


def test_held_out_rows_go_on_from_batch_to_batch(config):
    batches = list(held_out_batches(config))
    lanes = {name: np.concatenate([b[name] for b in batches], 1) for name in ("inputs", "targets", "mask")}
    read = [targets[mask > 0] for targets, mask in zip(lanes["targets"], lanes["mask"], strict=True)]
    np.testing.assert_array_equal(np.concatenate(read), load_streams(config)[1].tokens[1:])
    np.testing.assert_array_equal(lanes["inputs"][0, 1:], lanes["targets"][0, :-1])


def test_no_held_out_text_is_trained_on(config):
    for split in ("tail", "documents"):
        train, kept, tokenizer = load_streams(dataclasses.replace(config, split=split))
        text, held = tokenizer.decode(train.tokens), tokenizer.decode(kept.tokens)
        assert len(text) + len(held) == sum(len(BYTES.decode(s.tokens)) for s in (train, kept))
        assert not any(held[i : i + 12] in text for i in range(len(held) - 12))


def test_a_stream_row_is_a_run_of_the_text_that_never_restarts(config):
    text = np.asarray(load_streams(config)[0].tokens)
    for batch in itertools.islice(train_batches(config, seed=3), 5):
        assert not batch["reset"].any()
        for inputs, targets, mask in zip(batch["inputs"], batch["targets"], batch["mask"], strict=True):
            size = int(mask.sum())
            row = np.append(inputs[:size], targets[size - 1])
            places = np.lib.stride_tricks.sliding_window_view(text, size + 1)
            assert (places == row).all(1).any()


def test_packed_documents_are_whole_aligned_restarted_and_never_predict_one_another(config):
    config = dataclasses.replace(config, packing="documents")
    rows, stream = epoch(config), load_streams(config)[0]
    documents = [
        np.asarray(stream.tokens[a : b + 1]) for a, b in zip(stream.starts[:-1], stream.starts[1:], strict=True)
    ]
    found = []
    for inputs, targets, mask, reset in zip(*(rows[name] for name in rows), strict=True):
        begins = np.flatnonzero(reset)
        assert (begins % config.align == 0).all() and begins[0] == 0
        for begin, end in zip(begins, [*begins[1:], config.sequence], strict=True):
            size = int(mask[begin:end].sum())
            assert mask[begin : begin + size].all()  # padding comes after, and is never counted
            assert end - begin - size < config.align or end == config.sequence
            found.append(tuple(np.append(inputs[begin : begin + size], targets[begin + size - 1]).tolist()))
    pieces = [d[i : i + config.sequence + 1] for d in documents for i in range(0, len(d) - 1, config.sequence)]
    assert sorted(found) == sorted(tuple(piece.tolist()) for piece in pieces)


def test_padding_is_separators(config):
    config = dataclasses.replace(config, packing="documents")
    rows = epoch(config)
    assert (rows["mask"] == 0).any()
    for name in ("inputs", "targets"):
        assert (rows[name][rows["mask"] == 0] == BYTES.separator).all()


def test_first_fit_fills_rows_and_closes_old_ones():
    starts = np.cumsum([0, 5, 6, 3, 2, 9])
    layout = document_layout(starts, 8)
    rows = [layout.length[a:b].tolist() for a, b in itertools.pairwise(layout.first)]
    assert rows == [[5, 3], [6, 2], [8], [1]]
    many = document_layout(np.arange(0, 3 * 2000, 3), 4)
    assert many.rows == 1999 and (many.column == 0).all()
    assert stream_layout(10, 4).length.tolist() == [4, 4, 2]


def test_packing_wastes_little(config):
    starts = np.cumsum(np.append(0, np.random.default_rng(0).integers(1, 200, 5000)))
    layout = document_layout(starts, 256)
    assert layout.length.sum() == starts[-1]
    assert layout.rows * 256 < 1.03 * starts[-1]


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_same_seed_gives_the_same_batches_and_epochs_differ(config, packing):
    config = dataclasses.replace(config, packing=packing)
    first, again, other = (list(itertools.islice(train_batches(config, seed=s), 12)) for s in (5, 5, 6))
    for left, right in zip(first, again, strict=True):
        equal(left, right)
    assert any((left["inputs"] != right["inputs"]).any() for left, right in zip(first, other, strict=True))
    rows = Loader(load_streams(config)[0], config).layout.rows
    assert rows > 8
    stream = np.concatenate([batch["inputs"] for batch in itertools.islice(train_batches(config, seed=5), rows)])
    one, two = stream[:rows], stream[rows : 2 * rows]
    assert (one != two).any()
    np.testing.assert_array_equal(np.unique(one, axis=0), np.unique(two, axis=0))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_a_restored_iterator_goes_on_exactly(config, packing, steps):
    config = dataclasses.replace(config, packing=packing)
    iterator = train_batches(config, seed=1)
    for _ in range(steps):
        next(iterator)
    state = json.dumps(iterator.get_state())
    want = [next(iterator) for _ in range(10)]
    restored = train_batches(config, seed=1)
    next(restored)
    restored.set_state(json.loads(state))
    for batch in want:
        equal(next(restored), batch)


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_batch_are_the_rows_of_one_global_batch_whatever_their_number(config, count):
    whole = train_batches(config, seed=2)
    parts = [train_batches(config, seed=2, rows=rows) for rows in np.split(np.arange(4), count)]
    for _ in range(15):
        batches = [next(part) for part in parts]
        equal(next(whole), {name: np.concatenate([b[name] for b in batches]) for name in batches[0]})


def test_the_number_of_a_batch_is_all_that_is_needed_to_go_on_with_it(config):
    whole = train_batches(config, seed=2)
    batches = list(itertools.islice(whole, 40))
    for start in (0, 7, 30):
        going_on = train_batches(config, seed=2, start=start, rows=[3, 1])
        for batch in batches[start : start + 5]:
            equal(next(going_on), {name: x[[3, 1]] for name, x in batch.items()})


def test_worker_processes_give_the_same_batches_and_resume(config):
    config = dataclasses.replace(config, workers=2)
    plain, workers = train_batches(dataclasses.replace(config, workers=0), seed=4), train_batches(config, seed=4)
    for _ in range(5):
        equal(next(plain), next(workers))
    workers.close()
    restored = train_batches(config, seed=4, start=5)
    for _ in range(3):
        equal(next(plain), next(restored))
    restored.close()


KILLED = """
import os, signal, sys
from titans_jax.data import DataConfig, train_batches
batches = train_batches(DataConfig(corpus=sys.argv[1], sequence=64, batch=4, workers=2), seed=0)
for _ in range(4):
    batch = next(batches)
print({line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/psm_" in line}, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the names of shared memory are read in /proc")
def test_workers_and_their_shared_memory_do_not_outlive_a_process_that_is_killed(config, run_python):
    # Workers have the process' standard output: it ends with the last of them.
    printed = run_python("-c", KILLED, config.corpus, code=-signal.SIGKILL).stdout
    names = ast.literal_eval(printed)
    assert names and not [name for name in names if Path(name).exists()]


def test_a_batch_may_be_one_row(config):
    one, four = (train_batches(dataclasses.replace(config, batch=size), seed=3) for size in (1, 4))
    rows = [next(one) for _ in range(4)]
    equal({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, next(four))


def test_a_text_shorter_than_a_row_is_padded_where_documents_are_packed_and_refused_as_a_stream(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("short text\nand end\n")
    config = DataConfig(corpus=str(path), sequence=64, batch=3, held_out=0.3, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="data.sequence=64: the training text has rows of 12 tokens at most"):
        train_batches(config, seed=0)
    packed = dataclasses.replace(config, packing="documents")
    iterator = train_batches(packed, seed=0)
    batch, again = next(iterator), next(iterator)
    assert batch["mask"].sum() == 3 * (len("short text\n") + 1)
    equal(batch, again)
    for each in (config, packed):
        (kept,) = held_out_batches(each)
        assert kept["mask"].sum() == len("and end\n") + 1


def test_limit_takes_the_first_batches(config):
    everything = list(held_out_batches(config))
    assert len(everything) > 2
    for left, right in zip(held_out_batches(config, limit=2), everything[:2], strict=True):
        equal(left, right)
    assert len(list(held_out_batches(config, limit=1000))) == len(everything)


def test_wrong_arguments_are_refused_before_any_work(config):
    missing = dataclasses.replace(config, corpus="moby-duck")
    nothing = dataclasses.replace(config, held_out=0.0)
    cases = [
        (lambda: train_batches(config, seed=-1), "seed=-1 must be in"),
        (lambda: train_batches(config, seed=0, start=-1), "start=-1 must be 0 or more"),
        (lambda: train_batches(config, seed=0, rows=[0, 4]), r"rows=\[0, 4\] must be rows of a batch of data.batch=4"),
        (lambda: held_out_batches(config, limit=0), "limit=0 must be at least 1"),
        (lambda: held_out_batches(nothing), "data.held_out=0: there is no held-out text"),
        (lambda: train_batches(missing, seed=0), "data.corpus: 'moby-duck' is unknown; .*did you mean moby-dick"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
