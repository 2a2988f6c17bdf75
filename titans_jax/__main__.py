"""`python -m titans_jax COMMAND`, and the script titans-jax: see `titans_jax.cli`."""

import sys

from titans_jax import pages


def main() -> int:
    """Run the command of this process' arguments; returns its exit code."""
    pages.huge_pages()
    from titans_jax import cli  # now, not in the process that has just ended

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
