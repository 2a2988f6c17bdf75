"""`titans-jax stream`: files, standard input, interruptions, another stream's state."""

import io
import json
import signal

import pytest

from titans_jax import cli, files, metrics
from titans_jax.data import load_documents

TEXT = "".join(load_documents("moby-dick")[2:4])[:1000].encode("ascii", "ignore").decode()
SMALL = [
    *("--config", "lmm", "--model.dim", "16", "--model.depth", "2", "--model.memory.heads", "1"),
    *("--model.memory.head-dim", "8", "--model.memory.chunk", "16", "--model.memory.rule", "titans_linear"),
    *("--model.memory.conv", "0", "--model.persistent", "0", "--segment", "16", "--window", "64"),
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    path = folder / "text.txt"
    path.write_text(TEXT)
    assert cli.main(["stream", str(path), *SMALL, "--output-dir", str(folder / "out")]) == 0
    return folder / "out"


def test_a_stream_writes_its_files(whole):
    result = json.loads((whole / "result.json").read_text())
    assert result["bytes"] == result["tokens"] == len(TEXT.encode()) and result["non_finite"] == 0
    assert 7 < result["bits_per_byte"] < 9 and result["layer_1/surprise"] > 0
    assert result["resident_bytes"] > 1 << 20 and result["resident_growth_bytes"] is None  # too short to be warm
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(64, len(TEXT), 64), len(TEXT)]
    assert (whole / "stream.png").stat().st_size > 10_000
    assert json.loads((whole / "stream.json").read_text())["tokens"] == [line["step"] for line in lines]


def test_a_second_stream_in_a_folder_is_refused(whole, text, capsys):
    before = (whole / "metrics.jsonl").read_text()
    with files.locked(whole):
        assert cli.main(["stream", str(text), *SMALL, "--output-dir", str(whole), "--no-resume"]) == 2
    assert f"{whole} is in use by process" in capsys.readouterr().err
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_signal_stops_it_and_the_same_command_resumes(whole, text, tmp_path, monkeypatch, capsys):
    step = metrics.Footprint.step

    def interrupted(self: metrics.Footprint) -> int:
        if self.steps == 9:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    out = tmp_path / "out"
    command = ["stream", str(text), *SMALL, "--output-dir", str(out)]
    monkeypatch.setattr(metrics.Footprint, "step", interrupted)
    assert cli.main(command) == 75
    assert "stopped after 160 tokens" in capsys.readouterr().err and not (out / "result.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    command[1] = "-"
    assert cli.main(command) == 0
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    assert one["loss"] == other["loss"] and one["tokens"] == other["tokens"]
    before, command[1] = (out / "result.json").read_bytes(), str(text)
    assert cli.main(command) == 0
    assert "the text has no new tokens" in capsys.readouterr().out and (out / "result.json").read_bytes() == before


def test_a_stream_may_start_from_the_state_of_another(whole, tmp_path):
    text, before = tmp_path / "more.txt", (whole / "metrics.jsonl").read_bytes()
    text.write_text("Call me Ishmael.")
    losses = []
    for name, more in (("fresh", []), ("on", ["--from", str(whole)]), ("again", ["--from", str(whole)])):
        assert cli.main(["stream", str(text), *SMALL, *more, "--output-dir", str(tmp_path / name)]) == 0
        losses.append(json.loads((tmp_path / name / "result.json").read_text())["loss"])
    assert losses[0] != losses[1] == losses[2]
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--segment", "8"], 2, "holds a stream with segment 16, not 8"),
        (["--train.seed", "1", "--no-resume", "--from", "WHOLE", "--output-dir", "new"], 2, "state of another model"),
        (["--from", "nowhere", "--output-dir", "new"], 3, "nowhere is not the folder of a stream"),
    ],
)
def test_other_settings_are_refused_in_a_line(whole, text, tmp_path, changes, code, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = [str(whole) if change == "WHOLE" else change for change in changes]
    assert cli.main(["stream", str(text), *SMALL, "--output-dir", str(whole), *changes]) == code
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_texts_that_cannot_be_read(whole, tmp_path, capsys):
    empty, binary, other = (tmp_path / name for name in ("empty", "binary", "other"))
    empty.write_text("")
    binary.write_bytes(b"ab\xff")
    other.write_text("x" + TEXT[1:])
    for path, message in ((empty, "nothing to read"), (binary, "not UTF-8 text"), (tmp_path / "none", "No such file")):
        assert cli.main(["stream", str(path), *SMALL, "--output-dir", str(tmp_path / f"{path.name}.out")]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["stream", str(other), *SMALL, "--output-dir", str(whole)]) == 2
    assert "the text differs from the one that was read" in capsys.readouterr().err
    assert cli.main(["stream", str(other)]) == 2
    assert "one of the arguments --checkpoint --config is required" in capsys.readouterr().err


@pytest.mark.slow
def test_resident_memory_does_not_grow(run_python, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * (2_000_000 // len(TEXT)))
    arguments = ["stream", "text.txt", *SMALL, "--segment", "512", "--window", "4096", "--output-dir", "out"]
    run_python("-c", f"from titans_jax import cli; raise SystemExit(cli.main({arguments}))", timeout=300)
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["resident_growth_bytes"] <= 5 << 20, found
    assert found["compilations_after_warm_up"] == 0 and found["non_finite"] == 0
    assert found["bytes"] == (tmp_path / "text.txt").stat().st_size
