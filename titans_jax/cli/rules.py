"""`titans-jax rules`: the table of memory rules."""

import argparse

from titans_jax.memory.table import table


def configure(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(options: argparse.Namespace) -> None:
    """Print the table of rules: their parts, and the engines that run them."""
    print(table())
