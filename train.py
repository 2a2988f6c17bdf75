"""Train a model: `python train.py tiny`. `python train.py --help` lists the configs, `tiny --help` its fields."""

import sys

from titans_jax import pages

if __name__ == "__main__":
    pages.huge_pages()
    from titans_jax import training

    sys.exit(training.command(sys.argv[1:], prog="train.py"))
