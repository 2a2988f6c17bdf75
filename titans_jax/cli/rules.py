"""`titans-jax rules`: the table of rules."""

import argparse

from titans_jax.memory.table import table


def configure(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(options: argparse.Namespace) -> None:
    """Print the table of rules: what each is made of, and which engines serve it."""
    print(table())
