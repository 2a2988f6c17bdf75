"""Huge pages for the buffers of XLA on CPUs, which it gives back to the kernel after every step and asks for again."""

import os
import platform
import sys
from collections.abc import Mapping

NAME, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def huge_pages() -> None:
    """Begin this process anew with glibc's memory in huge pages, unless it begins with tunables or has no glibc.

    In small pages the kernel's part is a fifth of a small model's step. Before anything else is done: the process that
    calls this is gone.
    """
    if NAME not in os.environ and platform.libc_ver()[0] == "glibc":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {NAME: HUGE})


def as_given(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what `huge_pages` put there: that of another library's process."""
    return {name: value for name, value in environment.items() if (name, value) != (NAME, HUGE)}
