"""`bench peers`: memory, training step and next token beside titans-pytorch's, each in a process of its own."""

import subprocess

from titans_jax.bench import interleave
from titans_jax.bench.clock import cores
from titans_jax.bench.decode import WRITTEN
from titans_jax.bench.interleave import Subject
from titans_jax.bench.processes import Start, processes
from titans_jax.bench.report import Report, Rows
from titans_jax.bench.steps import MAC

CONTEXT = 4096
ALIKE = "memory of the peer's parts"
"""No convolution, and forgetting decays to 0, not to the initial weights: titans-pytorch has neither."""

EXACT, COARSE = (f"titans-pytorch memory, chunk_size {chunk}" for chunk in (1, 64))
PAIRS = {
    "titans-pytorch over ours: memory, the same recurrence": (EXACT, ALIKE),
    "titans-pytorch over ours: memory, there one momentum step a chunk": (COARSE, ALIKE),
    "titans-pytorch over ours: memory as our models have it, there the recurrence": (EXACT, "memory"),
    "titans-pytorch over ours: memory as our models have it, there one momentum step a chunk": (COARSE, "memory"),
    "titans-pytorch over ours: training step of MAC": ("titans-pytorch MAC training step", "MAC training step"),
    f"titans-pytorch over ours: next token after {CONTEXT:,}": ("titans-pytorch MAC next token", "MAC next token"),
}


def version(python: str) -> str:
    """The versions of torch and titans-pytorch there. Raises ValueError, in one line, if one is missing."""
    code = (
        "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in ('torch', 'titans-pytorch')), sep=', ')"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{python}: no such interpreter: {error.strerror}") from None
    if done.returncode:
        raise ValueError(f"{python} has no titans-pytorch; pip install titans-jax[parity], or name another by --python")
    return done.stdout.strip()


def subjects(start: Start, python: str, batch: int) -> dict[str, Subject]:
    """Ours and theirs: width 256, 4 heads of 64, memories of depth 2 and expansion 4, chunks and segments of 64."""

    def ours(function: str, tokens: int, **spec: object) -> Subject:
        return Subject(start(f"titans_jax.bench.{function}", **spec), tokens, {"library": "titans-jax", **spec})

    def theirs(function: str, tokens: int, **spec: object) -> Subject:
        make = start(f"titans_jax.bench.torch_peer:{function}", python=python, **spec)
        return Subject(make, tokens, {"library": "titans-pytorch", **spec})

    long, short = dict(length=1024, batch=batch), dict(length=256, batch=batch)
    return {
        "memory": ours("steps:memory_layer", 1024 * batch, **long),
        ALIKE: ours("steps:memory_layer", 1024 * batch, conv=0, to_origin=False, **long),
        EXACT: theirs("memory", 256 * batch, chunk=1, **short),
        COARSE: theirs("memory", 1024 * batch, chunk=64, **long),
        "MAC training step": ours("steps:training_step", 1024 * batch, block=MAC, **long),
        "titans-pytorch MAC training step": theirs("training_step", 1024 * batch, **long),
        "MAC next token": ours("decode:tokens", WRITTEN, block=MAC, context=CONTEXT, read=True),
        "titans-pytorch MAC next token": theirs("tokens", WRITTEN, context=CONTEXT),
    }


def compare(python: str, batch: int, count: int, rows: Rows) -> Report:
    """Each subject of both libraries; the ratios are their seconds a token over ours."""
    libraries = version(python)
    notes = (f"{libraries}; each library on {cores()} cores",)
    with processes() as start:
        every = subjects(start, python, batch)
        return interleave.run(every, count, rows, what="bench peers", pairs=PAIRS, notes=notes)
