"""`python -m titans_jax COMMAND`, and the script titans-jax: see `titans_jax.cli`."""

import sys


def main() -> int:
    """Run the command in sys.argv; returns its exit code."""
    from titans_jax import cli  # here, because each data worker imports this file and needs no jax

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
