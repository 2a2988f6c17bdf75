"""Train a model: `python train.py tiny`. `python train.py --help` lists the configs, `tiny --help` its fields."""

import sys

if __name__ == "__main__":
    from titans_jax import training  # here, because each data worker imports this file and needs no jax

    sys.exit(training.command(sys.argv[1:], prog="train.py"))
