"""Logs that a resumed run continues without a seam, and the bar."""

import io
import math
import mmap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from titans_jax import metrics


class Gates(NamedTuple):
    rate: np.ndarray
    keep: np.ndarray | None


class Info(NamedTuple):
    surprise: np.ndarray
    clipped: np.ndarray
    gates: Gates


def test_summary_against_hand_counts():
    # two tokens of three bytes each, probabilities 1/4 and 1/16: 2 + 4 bits over 6 bytes
    summary = metrics.summarise(nll=math.log(4) + math.log(16), tokens=2, correct=1, bytes=6)
    assert summary == pytest.approx({"loss": math.log(8), "perplexity": 8, "bits_per_byte": 1, "accuracy": 0.5})
    assert metrics.summarise(1e6, 1, 0, 1)["perplexity"] == math.inf
    with pytest.raises(ValueError, match="tokens=0"):
        metrics.summarise(0.0, 0, 0, 0)


def test_telemetry_by_layer():
    surprise = np.arange(12 * 2 * 3 * 4, dtype=np.float32).reshape(12, 2, 3, 4)
    clipped = np.zeros((12, 2, 3, 4), bool)
    clipped[1, 0] = True
    flat = metrics.telemetry(Info(surprise, jnp.asarray(clipped), Gates(jnp.ones((12, 2), jnp.bfloat16), None)))
    assert flat["layer_0/surprise"] == pytest.approx(surprise[0].mean())
    assert flat["layer_11/surprise"] == pytest.approx(surprise[11].mean())
    assert (flat["layer_0/clipped"], flat["layer_1/clipped"]) == (0.0, 0.5)
    assert flat["layer_3/gates/rate"] == 1.0
    assert len(flat) == 36
    assert list(flat)[:3] == ["layer_0/surprise", "layer_0/clipped", "layer_0/gates/rate"]
    assert list(flat)[-1] == "layer_11/gates/rate"
    reduced = metrics.telemetry({"surprise": surprise.mean(axis=(1, 2, 3))})
    assert reduced["layer_5/surprise"] == flat["layer_5/surprise"]
    assert metrics.telemetry(None) == {}


def run(directory, start, stop, fail_at=None):
    """A pretended training run that logs what depends on the step alone."""
    log = metrics.Log(directory, step=start or None)
    for step in range(start + 1, stop + 1):
        log.write(step, "train", {"loss": jnp.float32(3 / step), "tokens": 64 * step})
        if step % 5 == 0:
            log.write(step, "held_out", {"bits_per_byte": np.float64(2 / step)})
        if step == fail_at:
            break
    log.close()


def test_a_resumed_log_equals_an_unbroken_one(tmp_path):
    run(tmp_path / "whole", 0, 20)
    run(tmp_path / "broken", 0, 20, fail_at=13)
    path = tmp_path / "broken/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 14, "spl')
    run(tmp_path / "broken", 10, 20)
    assert path.read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    records = metrics.read_records(tmp_path / "broken")
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 21))
    assert records[5] == {"step": 5, "split": "held_out", "bits_per_byte": 0.4}

    run(tmp_path / "broken", 0, 3)  # started over: nothing of the earlier run stays
    assert [r["step"] for r in metrics.read_records(tmp_path / "broken")] == [1, 2, 3]
    assert len(list((tmp_path / "broken/tensorboard").iterdir())) == 1


def test_damaged_lines_are_left_out_and_named(tmp_path, caplog):
    run(tmp_path, 0, 5)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = [b"\0" * 99 + b"\n", b'{"step": 3, "spl\n', b"\xff\n", b"[1]\n", b'{"step": null, "split": "train"}\n']
    path.write_bytes(b"".join([*lines[:3], *damaged, *lines[3:]]))
    assert [r["step"] for r in metrics.read_records(tmp_path) if r["split"] == "train"] == [1, 2, 3, 4, 5]
    assert [f"{path}, line {n} is damaged" in caplog.text for n in (3, 4, 5, 6, 7, 8, 9)] == [False] + 5 * [True] + [
        False
    ]
    run(tmp_path, 5, 6)
    assert path.read_bytes().startswith(b"".join(lines))


def test_each_line_is_on_disk_at_once(tmp_path):
    with metrics.Log(tmp_path) as log:
        log.write(1, "train", {"loss": 2.5})
        assert metrics.read_records(tmp_path) == [{"step": 1, "split": "train", "loss": 2.5}]
        log.write(2, "train", {"loss": math.nan, "ok": True})
        assert '"loss": null' in (tmp_path / "metrics.jsonl").read_text()
        assert math.isnan(metrics.read_records(tmp_path)[1]["loss"])
        for wrong in ("high", np.zeros(2), None):
            with pytest.raises(ValueError, match="loss: expected a number"):
                log.write(3, "train", {"loss": wrong})
    with pytest.raises(FileNotFoundError, match="no log here"):
        metrics.read_records(tmp_path / "absent")


def scalars(directory):
    """Tag, step and value of every scalar in a folder of TensorBoard event files (framed protocol buffers)."""
    found = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_has_the_same_numbers(tmp_path):
    run(tmp_path, 0, 5)
    found = scalars(tmp_path / "tensorboard")
    assert ("train/tokens", 3, 192.0) in found
    assert ("held_out/bits_per_byte", 5, pytest.approx(0.4)) in found
    assert len(found) == 11


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["ci", "terminal"])
def test_progress(monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    now = iter(range(1000))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: float(next(now)))
    with metrics.Progress(20, "train", initial=10) as bar:
        for step in range(10):
            bar.advance(tokens=5000, **({"loss": 2.0} if step == 9 else {}))
    last = stream.getvalue().replace("\r", "\n").rstrip("\n").split("\n")[-1]
    assert "train 100%" in last
    assert "20/20" in last
    assert "loss=2" in last
    assert "tokens/s=5.00k" in last  # a step a second; the first, which compiles, does not count
    assert ("\r" in stream.getvalue()) == stream.isatty()


def grown(monkeypatch, held: list[int], warm_up: int) -> int | None:
    samples = iter(held)
    monkeypatch.setattr(metrics, "resident_bytes", lambda: next(samples, 0))
    footprint = metrics.Footprint(warm_up)
    for _ in held:
        footprint.step()
    return footprint.found()["resident_growth_bytes"]


def test_a_footprint_is_what_stays_after_the_warm_up(monkeypatch):
    n = metrics.Footprint.SAMPLES
    assert grown(monkeypatch, [100, 300, *[250] * n, *[240] * n], 2) == 150  # over what was held at its least
    assert grown(monkeypatch, [500, *[100] * n, *[170] * n, *[130] * n], n) == 70  # at most, not at the end
    assert grown(monkeypatch, [*[100] * n, *[100, 190] * n], n) == 0  # buffers that come and go
    assert grown(monkeypatch, [*[100] * n, *[60] * n], n) == 0
    assert grown(monkeypatch, [*[100] * n, *[60] * n, *[90] * n], n) == 30  # though the system took some away
    assert grown(monkeypatch, [*[100] * n, *[200] * (n - 1)], n) is None


def test_a_footprint_counts_what_is_compiled_after_the_warm_up():
    with metrics.Footprint(warm_up=1) as footprint:
        jax.jit(lambda x: x * 3.25)(1.0)
        footprint.step()
        assert footprint.compiled == 0
        jax.jit(lambda x: x * 5.25)(1.0)
        for _ in range(footprint.SAMPLES):
            footprint.step()
    jax.jit(lambda x: x * 7.25)(1.0)
    assert footprint.found()["compilations_after_warm_up"] == footprint.compiled == 1


def test_resident_memory_is_what_the_process_holds():
    size = 64 << 20  # of pages that the system gives: an array may get what this process held and freed before
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE) as pages:
        before = metrics.resident_bytes()
        pages[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        assert 0.9 * size < metrics.resident_bytes() - before < 1.5 * size
