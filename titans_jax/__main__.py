"""`python -m titans_jax COMMAND`, and the script titans-jax: see `titans_jax.cli`."""

import sys


def main() -> int:
    """Run the command in sys.argv and return its exit code."""
    from titans_jax import cli  # not at the top: data workers import this file and must not import jax

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
