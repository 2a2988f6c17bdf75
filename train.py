"""Train a model: `python train.py tiny`. `--help` lists the configs, `tiny --help` the fields of tiny."""

import sys

if __name__ == "__main__":
    from titans_jax.__main__ import main  # not at the top: data workers import this file

    sys.exit(main(["train", *sys.argv[1:]], "train.py"))
