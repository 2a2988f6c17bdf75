"""`titans-jax replay`: a step of a training again, to find what is not finite in it."""

import argparse
from dataclasses import replace

from titans_jax import results, training
from titans_jax.cli.options import corpus_option, path, positive, rule_option, source_of
from titans_jax.training.replay import find, replay


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: the run and the step."""
    parser.add_argument("folder", type=path, metavar="OUTPUT", help="the output folder of a run")
    parser.add_argument("step", type=positive, metavar="STEP", help="the step, such as the one where the run diverged")
    rule_option(parser)
    corpus_option(parser)


def run(options: argparse.Namespace) -> None:
    """Run a step of a training again from the checkpoint before it, and say what is not finite and where it begins."""
    with training.memory_advice():
        experiment, before = find(options.folder, options.step, rule=options.rule)
        experiment = replace(experiment, data=source_of(experiment, options))
        print(results.lines(replay(options.folder, experiment, options.step, before), 28))
