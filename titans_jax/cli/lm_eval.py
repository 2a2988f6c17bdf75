"""`titans-jax lm-eval`: lm-evaluation-harness on a checkpoint."""

import argparse

from titans_jax import data, results, training
from titans_jax.cli.options import checkpoint_options, corpus_option, load, names, output, path, positive, source_of
from titans_jax.data.tasks import TEXT_TASKS
from titans_jax.evaluation.lm_eval import adapter_class, run_tasks, write_tasks


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the checkpoint and the tasks."""
    checkpoint_options(parser)
    corpus_option(parser)
    known = f"ours: {', '.join(TEXT_TASKS)}; or tasks of lm-eval or of --tasks-dir"
    parser.add_argument("--tasks", type=names, default="passkey", metavar="A,B", help=f"{known} (default %(default)s)")
    parser.add_argument("--tasks-dir", type=path, help="folder of lm-eval's YAML files; ours are written there too")
    parser.add_argument("--size", type=positive, default=512, help="characters per question of our tasks (default 512)")
    parser.add_argument("--count", type=positive, default=64, help="questions per task of ours (default 64)")


def run(options: argparse.Namespace) -> None:
    """Run tasks of EleutherAI's lm-evaluation-harness on a checkpoint; ours need no network. Needs the extra `eval`."""
    adapter_class()  # it says at once where lm-eval is not installed
    folder = output(options, "lm_eval")
    experiment, model, step = load(options.checkpoint, options)
    tasks_dir = options.tasks_dir or folder / "tasks"
    own = [name for name in options.tasks if name in TEXT_TASKS]
    hay = "\n".join(data.load_documents(source_of(experiment, options).corpus)) if own else ""
    written = dict(zip(own, write_tasks(tasks_dir, own, size=options.size, count=options.count, hay=hay), strict=True))
    tokenizer = data.load_tokenizer(experiment.data.tokenizer)
    with training.memory_advice():
        found = run_tasks(model, tokenizer, tasks_dir, [written.get(name, name) for name in options.tasks])
    result = {f"{task}_{metric}": value for task, numbers in found.items() for metric, value in numbers.items()}
    results.write_result(folder, result | {"checkpoint": str(options.checkpoint), "step": step})
    print(results.lines(result, 32))
    print(f"written: {folder}/result.json")
