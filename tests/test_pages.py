"""Commands begin in huge pages, once, with the arguments they were given; another library's process does not."""

import os
import platform

import pytest

from titans_jax import pages
from titans_jax.pages import HUGE, NAME

GLIBC = platform.libc_ver()[0] == "glibc"
SAY = """
import os, sys
from titans_jax import pages
pages.huge_pages()
print(os.environ.get('GLIBC_TUNABLES'), sys.argv)
"""


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_a_process_begins_anew_with_its_arguments(run_python, monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    assert run_python("-c", SAY, "a b", "--c").stdout == f"{HUGE} ['-c', 'a b', '--c']\n"


def test_a_process_with_tunables_of_its_own_stays(run_python, monkeypatch):
    monkeypatch.setenv(NAME, "glibc.malloc.arena_max=1")
    assert run_python("-c", SAY).stdout == "glibc.malloc.arena_max=1 ['-c']\n"


def test_without_glibc_nothing_begins(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("began anew"))
    pages.huge_pages()


def test_only_what_was_put_there_is_taken_away():
    assert pages.as_given({NAME: HUGE, "A": "b"}) == {"A": "b"}
    own = {NAME: HUGE + ":glibc.malloc.arena_max=1"}
    assert pages.as_given(own) == own


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
@pytest.mark.parametrize(("command", "tunables"), [("train", HUGE), ("bench", HUGE), ("stream", None)])
def test_commands_that_train_begin_in_them(command, tunables, run_python, monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    source = (
        f"import os, runpy, sys; sys.argv = ['titans-jax', {command!r}, '--help']\n"
        "try: runpy.run_module('titans_jax', run_name='__main__', alter_sys=True)\n"
        "finally: print(os.environ.get('GLIBC_TUNABLES'))"
    )
    said = run_python("-c", source).stdout
    assert f"usage: titans-jax {command}" in said and said.endswith(f"{tunables}\n")
