"""Train a model: `python train.py tiny`. `--help` lists the configs, `tiny --help` the fields of tiny."""

import sys

if __name__ == "__main__":
    from titans_jax import training  # not at the top: data workers import this file and must not import jax

    sys.exit(training.command(sys.argv[1:], prog="train.py"))
