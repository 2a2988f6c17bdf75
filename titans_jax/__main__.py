"""`python -m titans_jax COMMAND`, and the script titans-jax: see `titans_jax.cli`."""

import sys

from titans_jax import pages

TRAIN = {"train", "bench", "compare", "needle"}
"""Commands whose steps ask for much memory; a stream holds little, of which huge pages would hold more."""


def main() -> int:
    """Run the command of this process' arguments; returns its exit code."""
    if TRAIN.intersection(sys.argv[1:2]):
        pages.huge_pages()
    from titans_jax import cli  # now, not in the process that has just ended

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
