"""Sequence models whose memory is a small network, trained while it reads."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("titans-jax")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+checkout"
