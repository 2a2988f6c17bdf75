"""Rounds: all subjects in turn, the first call outside the clock, medians and ends, rounds kept when interrupted."""

import json

import pytest

from titans_jax.bench import interleave, processes
from titans_jax.bench.interleave import Plan, Subject
from titans_jax.bench.report import Rows


def subject(name, cpus, seen, tokens=500, flops=None):
    """A subject whose samples are given."""
    left = iter(cpus)

    def take():
        seen.append(name)
        cpu = next(left)
        if isinstance(cpu, BaseException):
            raise cpu
        return {"cpu": cpu, "wall": cpu / 2, "peak": 100 * cpu}

    def make():
        seen.append(f"make {name}")
        return take

    return Subject(make, {}, tokens, flops, {"pass": name})


@pytest.fixture
def matmul(monkeypatch):
    monkeypatch.setattr(interleave, "SIZE", 1000)  # 2e9 FLOPs
    monkeypatch.setattr(interleave, "matrix_product", subject("matmul", [0.25, 0.25, 0.5], []).function)


def test_subjects_take_turns_and_medians_stand_for_them(tmp_path, matmul):
    seen = []
    subjects = {"a": subject("a", [1.0, 9.0, 2.0], seen, flops=1e6), "b": subject("b", [4.0, 3.0, 5.0], seen)}
    found = interleave.run(Plan(subjects), Rows(tmp_path, {}), 3).rows
    assert seen == ["make a", "make b", *["a", "b"] * 3]
    a, b = found["a"], found["b"]
    assert (a["cpu_ms"], a["cpu_ms_least"], a["cpu_ms_most"]) == (4000, 2000, 18000)  # of 1,000 tokens
    assert (b["cpu_ms"], b["wall_ms"], b["tokens_per_second"]) == (8000, 4000, 250)
    assert b["peak"] == 400 and b["pass"] == "b" and b["rounds"] == 3
    # 5e8 FLOPs in 1, 9, 2 s of a machine that made 8, 8, 4 GFLOPs a second in those rounds
    assert a["gflops_per_cpu_s"] == 0.25 and a["share"] == pytest.approx(0.0625)
    assert a["share_least"] == pytest.approx(0.5 / 9 / 8) and "share" not in b
    assert found["matmul"]["gflops_per_cpu_s"] == 8


def test_finished_rounds_are_kept(tmp_path, matmul):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        interleave.run(Plan({"a": subject("a", [1.0, KeyboardInterrupt()], seen)}), Rows(tmp_path, {}), 3)
    kept = list(json.loads((tmp_path / "rows.json").read_text())["rows"])
    assert kept == ["round 1: matmul", "round 1: a", "round 2: matmul"]
    found = interleave.run(Plan({"a": subject("a", [2.0, 3.0], seen)}), Rows(tmp_path, {}), 3).rows
    assert (found["a"]["cpu_ms_least"], found["a"]["cpu_ms"], found["a"]["cpu_ms_most"]) == (2000, 4000, 6000)
    interleave.run(Plan({"a": subject("a", [], seen)}), Rows(tmp_path, {}), 3)
    assert seen == ["make a", "a", "a", "make a", "a", "a"]  # the last run had nothing to make


def test_ratios_are_of_a_token_and_of_one_round(tmp_path):
    subjects = {"a": subject("a", [1.0, 9.0, 2.0], []), "b": subject("b", [4.0, 3.0, 6.0], [], tokens=1000)}
    pairs = {"b over a": ("b", "a")}
    report = interleave.run(Plan(subjects, pairs), Rows(tmp_path, {}), 3, matmul=False)
    row = report.ratios["b over a"]
    assert (row["over"], row["under"]) == ("b", "a")
    assert (row["times_cpu"], row["times_cpu_least"], row["times_cpu_most"]) == (1.5, pytest.approx(1 / 6), 2)
    assert row["times_wall"] == 1.5 and "matmul" not in report.rows


def test_a_sample_is_of_one_call_and_warm_up_is_outside(monkeypatch):
    now, cost = [0.0], iter([50.0, *[0.06] * 100])

    def call():
        now[0] += next(cost)

    monkeypatch.setattr(processes.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(processes.time, "process_time", lambda: 2 * now[0])
    take = processes.timer(call)
    assert now[0] == pytest.approx(50.06)
    assert take() == {"cpu": pytest.approx(0.12), "wall": pytest.approx(0.06)}
    assert now[0] == pytest.approx(50.06 + 4 * 0.06)  # as many calls as fill LEAST seconds
    processes.timer(call, 7)()
    assert now[0] == pytest.approx(50.06 + 4 * 0.06 + 2 * 0.06 + 7 * 0.06)


def test_rounds_of_another_source_are_not_mixed(tmp_path, monkeypatch):
    settings = interleave.settings("memory", length=64)
    assert settings["bench"] == "memory" and settings["length"] == 64 and settings["cores"] >= 1
    Rows(tmp_path, settings).get("round 1", dict)
    monkeypatch.setattr(interleave, "_source", lambda: "another")
    with pytest.raises(ValueError, match="holds rows with source = .*, not another"):
        Rows(tmp_path, interleave.settings("memory", length=64))
