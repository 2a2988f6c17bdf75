"""`titans-jax replay`: a step of a training again, to find what is not finite in it."""

import argparse

from titans_jax import results, training
from titans_jax.cli.options import path, positive
from titans_jax.training.replay import replay


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the run and the step."""
    parser.add_argument("folder", type=path, metavar="OUTPUT", help="the output folder of a run")
    parser.add_argument("step", type=positive, metavar="STEP", help="the step, such as the one where the run diverged")


def run(options: argparse.Namespace) -> None:
    """Run a step of a training again from the checkpoint before it, and say what is not finite and where it begins."""
    with training.memory_advice():
        print(results.lines(replay(options.folder, options.step), 28))
