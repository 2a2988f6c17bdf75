"""The command line: help, one-line errors, exit codes, files."""

import html
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from titans_jax import cli, config, training
from titans_jax.waiting import STOPPING

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--model.block", "transformer", "--model.dim", "16", "--model.depth", "1", "--model.heads", "1"),
    *("--model.head-dim", "8", "--model.window", "16", "--data.sequence", "32", "--data.batch", "4"),
    *("--train.steps", "4", "--train.eval-every", "4", "--train.eval-batches", "2", "--train.sample", "2"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", "tiny", *SMALL, "--output-dir", str(folder)]) == 0
    return folder


def test_train_py_lists_the_configs(run_python):
    printed = run_python(ROOT / "train.py", "--help").stdout
    for name, line in config.available().items():
        assert name in printed and line in printed


def test_train_py_suggests_the_closest_field(run_python):
    done = run_python(ROOT / "train.py", "tiny", "--model.dpeth", "3", code=2)
    assert done.stderr.splitlines()[-1] == "train.py: no option --model.dpeth; did you mean --model.depth?"


def test_a_config_lists_its_fields(capsys):
    with pytest.raises(SystemExit) as exit_:
        training.command(["tiny", "--help"], prog="train.py")
    assert not exit_.value.code
    printed = capsys.readouterr().out
    assert "--model.memory.chunk" in printed and "--optim.peak-rate" in printed and "--mesh" in printed


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["eval", "--help"], ["generate", "--help"]])
def test_every_command_has_help(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 0
    assert "usage: titans-jax" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["audit", "nowhere", "--samples", "1"], 2, "memories are swapped between texts; give at least 2"),
        (["audit", "nowhere"], 3, "nowhere is no folder of checkpoints"),
        (["trian"], 2, "no command 'trian'; did you mean train?"),
        (["--verion"], 2, "no command '--verion'; did you mean --version?"),
        (["eval", "--checkpint", "x"], 2, "--checkpoint"),
        (["rules", "--vorbose"], 2, "unrecognized arguments: --vorbose"),
        (["bench", "recall", "--seds", "3"], 2, "no option --seds; did you mean --seeds?"),
        (["train", "tinny"], 2, "no config named 'tinny'; did you mean tiny?"),
        (["train", "tiny", "--data.corpus", "moby-dik"], 2, "did you mean moby-dick?"),
        (["train", "tiny", "--mesh", "dada=2"], 2, "dada=2"),
        (["eval", "--checkpoint", "nowhere", "--which", "bst"], 2, "not best, last or a step; did you mean best?"),
        (["eval", "--checkpoint", __file__], 3, f"{__file__} is no folder of checkpoints; give a run's output folder"),
        (["eval", "--checkpoint", "a/checkpoints/4"], 3, "give a/checkpoints and --which 4"),
        (["eval", "--checkpoint", "nowhere", "--temperature", "inf"], 2, "temperature is inf; it must be 0"),
        (["eval", "--checkpoint", "nowhere", "--output-dir", __file__], 2, f"{__file__} is a file"),
        (["eval", "--checkpoint", "nowhere", "--split", "tst"], 2, "--split: 'tst' is unknown; known are tail, "),
        (["haystack", "--chekpoint", "x"], 2, "no option --chekpoint; did you mean --checkpoint?"),
        (["generate", "--checkpoint", ".", "--prompt-file", "."], 2, "titans-jax: .: Is a directory"),
        (["generate", "--checkpoint", ".", "--prompt", "\udce9"], 2, "--prompt: not UTF-8 text"),
        (["plot", "learning", "--output", "."], 2, "output file .: it is a folder; give a file in it"),
        (["plot", "surprise", "--rule", "titanz"], 2, "did you mean titans?"),
        (["bench", "memry"], 2, "KIND: 'memry' is unknown"),
        (["bench", "memory", "--rules", "titan"], 2, "did you mean titans?"),
        (["bench", "memory", "--json", "."], 2, "output file .: it is a folder; give a file in it"),
        (["compare", "macc"], 2, "did you mean mac?"),
        (["train", "tiny", "--output-dir", __file__], 2, f"output folder {__file__}: {__file__} is a file"),
        (["compare", "lmm", "--output-dir", f"{__file__}/new"], 2, f"{__file__} is a file; give another folder"),
        (["train", "tiny", "--data.sequence", "9999999"], 2, "data.sequence=9999999: the training text has rows of 1"),
        (["train", "tiny", "--train.prompt", "\udce9"], 2, "train.prompt is '\\udce9', which is not UTF-8 text"),
        (["eval", "--checkpoint", "nowhere"], 3, "nowhere is no folder of checkpoints"),
        (["generate", "--checkpoint", "nowhere"], 3, "nowhere is no folder of checkpoints"),
        (["generate", "--checkpoint", ".", "--top-p", "2"], 2, "top_p is 2.0"),
        (["generate", "--checkpoint", ".", "--prompt-file", "none.txt"], 2, "none.txt"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(arguments, code, message, capsys):
    assert cli.main(arguments) == code
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
@pytest.mark.parametrize(
    "command",
    [
        "generate --checkpoint .",
        "haystack --checkpoint .",
        "audit .",
        "plot surprise",
        "plot learning",
        "needle infer --checkpoint .",
        "train tiny --train.seed",
        "needle train --seed",
        "needle train --data-seed",
    ],
)
def test_a_seed_that_another_one_equals_is_refused(command, seed, capsys):
    arguments = command.split() + ([] if command.endswith("seed") else ["--seed"])
    assert cli.main([*arguments, str(seed)]) == 2
    printed = capsys.readouterr().err
    assert "seed" in printed and str(seed) in printed and "in [0, 2**32)" in printed and printed.count("\n") == 1


def test_a_prompt_that_is_not_text_is_refused(tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"))
    for option in ("--prompt-file", "--prompts"):
        assert cli.main(["generate", "--checkpoint", "nowhere", option, str(tmp_path / "latin.txt")]) == 2
        assert "latin.txt: not UTF-8 text: unexpected end of data at byte 3" in capsys.readouterr().err


def test_a_wrong_checkpoint_leaves_no_folder(tmp_path):
    (tmp_path / "text").write_text("The")
    where = ["--checkpoint", str(tmp_path / "typo")]
    for command in (["stream", str(tmp_path / "text")], ["generate"], ["eval"], ["export"]):
        assert cli.main([*command, *where]) == 3
    assert not (tmp_path / "typo").exists()


def test_pictures_without_matplotlib_are_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("titans_jax.cli.plot.draw_learning", None)
    assert cli.main(["plot", "learning"]) == 2
    assert "pip install titans-jax[plot]" in capsys.readouterr().err


def test_help_and_typing_errors_import_no_jax(run_python):
    watched = (
        "import sys; from titans_jax import cli; code = cli.main({}); assert 'jax' not in sys.modules; sys.exit(code)"
    )
    assert "did you mean train?" in run_python("-c", watched.format(["trian"]), code=2).stderr
    helped = "import sys; from titans_jax.__main__ import main; sys.argv[1:] = ['--help']; main()"
    assert all(name in run_python("-c", helped).stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("cache", [True, False])
def test_compiled_programs_are_kept_below_the_home_folder(cache, run_python, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    call = f"training.guard(lambda: jax.jit(jax.numpy.sin)(1.0), prog='titans-jax', cache={cache})"
    run_python("-c", f"import jax; from titans_jax import training; {call}")
    assert bool([*tmp_path.glob(".cache/titans_jax/programs-*/*")]) == cache


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted(options):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have ignored
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.module_of("rules"), "run", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["rules"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "titans-jax: interrupted"


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_what_does_not_end_by_itself(number, run_python):
    dropped = f"""import signal, time
from titans_jax.waiting import ends_at_once
signal.signal({int(number)}, lambda number, frame: None)
with ends_at_once("stopped here", 75):
    signal.raise_signal({int(number)})
    time.sleep(60)"""
    assert run_python("-c", dropped, code=75).stderr.strip() == "stopped here"


def test_what_ends_in_time_is_not_ended(run_python):
    ended = """import signal, time
from titans_jax.waiting import ends_at_once, ends_by_itself
signal.signal(signal.SIGINT, lambda number, frame: None)
with ends_at_once("stopped here", 75):
    with ends_by_itself():
        signal.raise_signal(signal.SIGINT)
        time.sleep(1.5)
    signal.raise_signal(signal.SIGINT)
time.sleep(1.5)"""
    assert not run_python("-c", ended).stderr


def test_a_command_that_was_stopped_does_not_wait_for_the_device(run_python):
    stopped = """import atexit
from titans_jax import __main__, cli
atexit.register(print, "waited")
cli.main = lambda *arguments: 75
print("stopped")
__main__.main()"""
    assert run_python("-c", stopped, code=75).stdout == "stopped\n"


def test_a_program_that_waits_shows_it(run_python):
    busy = "import time; from titans_jax.waiting import waiting\nwith waiting('importing'): time.sleep(5)"
    assert re.match(r"importing \[\d+ s\]\n", run_python("-c", busy).stderr)


def test_a_letter_that_the_terminal_lacks_is_replaced(run_python, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_python("-m", "titans_jax", "tr\N{LATIN SMALL LETTER A WITH DIAERESIS}in", code=2)
    assert "titans-jax: no command 'tr?in'; did you mean train?" in done.stderr


def test_a_reader_that_has_read_enough_is_no_error(run_python):
    closed = "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
    ends = closed + "from titans_jax.__main__ import main; sys.exit(main(['data', 'list']))"
    said = run_python("-c", ends, code=141).stderr
    assert not re.sub(r"^importing \[\d+ s\]\n", "", said, flags=re.MULTILINE)  # of a slow machine


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["eval", "--checkpoint", "nowhere", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_sequence_longer_than_the_text_is_refused(trained, capsys):
    assert cli.main(["eval", "--checkpoint", str(trained), "--sequence", "9999999", "--no-report"]) == 2
    assert "--sequence 9999999: the held-out text has 61890 tokens; give at most that" in capsys.readouterr().err


def test_a_run_of_another_command_is_refused(trained, capsys):
    assert cli.main(["needle", "infer", "--checkpoint", str(trained)]) == 3
    assert "is a run of another command" in capsys.readouterr().err


def test_eval_writes_its_files(trained, tmp_path, capsys):
    folder = tmp_path / "results"
    arguments = ["eval", "--checkpoint", str(trained), "--limit", "2", "--no-report"]
    assert cli.main([*arguments, "--output-dir", str(folder)]) == 0
    result = json.loads((folder / "result.json").read_text())
    run = json.loads((trained / "result.json").read_text())
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy"):
        assert result[name] == pytest.approx(run[name], rel=1e-6)
    assert result["reset"] in capsys.readouterr().out
    assert f"{result['bits_per_byte']:.4f}" in (folder / "result.txt").read_text()
    assert cli.main(arguments) == 0
    assert (trained / "eval" / "result.json").is_file()


def test_a_seed_gives_the_same_text_in_any_batch(trained, tmp_path, capsys):
    arguments = ["generate", "--checkpoint", str(trained), "--length", "6", "--prompt", "Call", "--output-dir"]

    def samples(name: str, *more: str) -> list[str]:
        assert cli.main([*arguments, str(tmp_path / name), *more]) == 0
        return json.loads((tmp_path / name / "samples.json").read_text())

    [alone] = samples("alone")
    assert capsys.readouterr().out == alone + "\n"  # streamed
    assert alone.startswith("Call")
    several = samples("several", "--batch", "2", "--prompt", "Ishmael is")
    assert several[0] == alone and several[2].startswith("Ishmael is")
    assert samples("other", "--seed", "1") != [alone]
    (tmp_path / "prompts.txt").write_text("Call\n\nCall\nIshmael is\n")
    arguments[5:7] = ["--prompts", str(tmp_path / "prompts.txt")]
    assert samples("lines", "--slots", "2") == several[:3]
    assert json.loads((tmp_path / "several/result.json").read_text())["tokens"] == 4 * 6


def test_prompts_are_lines_and_nothing_else_parts_them(trained, tmp_path):
    prompts = ["one\u2028two", "a\fb\x85c"]
    (tmp_path / "prompts.txt").write_bytes(("\ufeff" + "\r\n".join(prompts)).encode())
    arguments = ["generate", "--checkpoint", str(trained), "--length", "1", "--prompts", str(tmp_path / "prompts.txt")]
    assert cli.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert [sample[: len(prompt)] for sample, prompt in zip(samples, prompts, strict=True)] == prompts


def test_generate_ends_before_the_stop_text(trained, tmp_path):
    arguments = ["generate", "--checkpoint", str(trained), "--length", "6", "--prompt", "Call", "--output-dir"]
    cli.main([*arguments, str(tmp_path / "free")])
    [free] = json.loads((tmp_path / "free/samples.json").read_text())
    cli.main([*arguments, str(tmp_path / "cut"), "--stop", free[6]])
    [cut] = json.loads((tmp_path / "cut/samples.json").read_text())
    assert cut == "Call" + free[4:].partition(free[6])[0]


def test_a_damaged_checkpoint_exits_with_3(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for path in (copy / "checkpoints").rglob("*"):
        if path.is_file() and "manifests" not in path.parts and path.stat().st_size:
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 1
            path.write_bytes(raw)
    assert cli.main(["eval", "--checkpoint", str(copy)]) == 3
    assert "no usable checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_inside_the_package_remembers_beyond_its_attention(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "The whale swam on, and the ship sailed after it. " * 20
    prompt = f"The key: 481. {text}The key:"
    assert len(prompt) > 520  # four layers of 127 tokens of attention and 3 of convolution
    assert cli.main(["generate", "--prompt", prompt, "--length", "5", "--temperature", "0"]) == 0
    assert "The key: 481." in capsys.readouterr().out.removeprefix("The key: 481.")
    assert (tmp_path / "outputs/released/generate/samples.txt").is_file()


def test_an_audit_writes_a_page_and_says_what_it_found(trained, capsys):
    assert cli.main(["audit", str(trained), "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((trained / "audit/audit.json").read_text())
    assert found["found"] in printed and "its memory does not recall the facts" in found["found"]
    passed = {check["name"]: check["passed"] for check in found["checks"]}
    assert passed["scores changed by later tokens"] and not passed["the fact, memory on"]
    page = html.unescape((trained / "audit/audit.html").read_text())
    assert all(name in page for name in passed) and "FAIL" in page


def test_doctor_reports_what_works_and_what_does_not(tmp_path, capsys):
    assert cli.main(["doctor", "--json", "--output-dir", str(tmp_path / "new")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["ok"] for row in found.values()) and "cpu" in found["devices"]["found"]
    assert "jax 0." in found["packages"]["found"] and not (tmp_path / "new").exists()
    assert cli.main(["doctor", "--output-dir", __file__]) == 2
    printed = capsys.readouterr()
    assert "FAIL  output folder" in printed.out and "1 failed: output folder" in printed.err
