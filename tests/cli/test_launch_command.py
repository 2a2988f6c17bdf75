"""`titans-jax launch`: what it starts, prints, forwards and returns; its processes here are scripts without jax."""

import os
import signal
import sys
import threading
import time

import pytest

from titans_jax import cli
from titans_jax.cli import launch

SCRIPT = """
import os, signal, sys, time
index = int(sys.argv[-1].split(",")[-1])
print("output of", index, "with", sys.argv[1:-1], flush=True)
print("error of", index, os.environ["XLA_FLAGS"].split()[-1], file=sys.stderr, flush=True)
def note(*_):
    time.sleep(1.5)  # as one that saves
    open(f"stopped {{index}}", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, note)
open(f"ready {{index}}", "w").close()
{body}
"""


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def launched(monkeypatch, body, *arguments) -> int:
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-c", SCRIPT.format(body=body)))
    try:
        return cli.main(["launch", *arguments, "--", "train", "tiny", "--train.steps", "1"])
    except SystemExit as exit_:
        return exit_.code


def test_process_0_alone_is_heard_where_all_goes_well(monkeypatch, capfd):
    assert launched(monkeypatch, "", "--processes", "3", "--devices", "4") == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines() == ["output of 0 with ['train', 'tiny', '--train.steps', '1', '--distributed']"]
    assert printed.err.splitlines() == ["error of 0 --xla_force_host_platform_device_count=4"]


def test_the_process_that_fails_first_decides_and_the_others_end(monkeypatch, capfd):
    monkeypatch.setattr(launch, "PATIENCE", 1)
    assert launched(monkeypatch, "sys.exit(4) if index == 1 else time.sleep(600)") == 4
    assert "process 1: error of 1" in capfd.readouterr().err
    assert launched(monkeypatch, "os.kill(os.getpid(), 9) if index == 1 else time.sleep(600)") == 128 + 9
    assert "titans-jax: process 1 was ended by SIGKILL" in capfd.readouterr().err


def test_an_error_of_all_is_printed_once(monkeypatch, capfd):
    assert launched(monkeypatch, "sys.exit(2)") == 2
    assert capfd.readouterr().err.splitlines() == ["error of 0 --xla_force_host_platform_device_count=1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_process_which_may_take_its_time(number, monkeypatch, tmp_path):
    def interrupt() -> None:
        while len([*tmp_path.glob("ready *")]) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert launched(monkeypatch, "time.sleep(60)") == 75
    thread.join()
    assert sorted(path.name for path in tmp_path.glob("stopped *")) == ["stopped 0", "stopped 1"]


@pytest.mark.parametrize(
    "arguments", [["launch"], ["launch", "--", "eval"], ["launch", "--processes", "0", "--", "train"]]
)
def test_what_cannot_be_launched_is_one_line(capsys, arguments):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
