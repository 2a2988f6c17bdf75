"""The top level: what `import titans_jax` costs, what it exports, and what help() says."""

import importlib.resources
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import titans_jax
from titans_jax import decode, memory, nn, optim
from titans_jax.config import Experiment

ROOT = Path(__file__).resolve().parents[1]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, titans_jax; print(titans_jax.__version__, *sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+[.+]\S+", done.stdout.strip()), done.stdout


def test_exported_names_are_those_of_the_packages():
    assert titans_jax.LM is nn.LM and titans_jax.MemoryLayer is nn.MemoryLayer
    assert titans_jax.miras is memory.miras and titans_jax.presets is memory.presets
    assert titans_jax.m3 is optim.m3 and titans_jax.generate is decode.generate
    assert titans_jax.Experiment is Experiment
    assert all(getattr(titans_jax, name) is not None for name in titans_jax.__all__)
    assert set(titans_jax.__all__) <= set(dir(titans_jax))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        titans_jax.nothing  # noqa: B018


def test_help_names_every_package():
    text = pydoc.plain(pydoc.render_doc(titans_jax))
    packages = {module.name for module in pkgutil.iter_modules(titans_jax.__path__) if module.ispkg}
    missing = [name for name in packages if not re.search(rf"^ +{name}  +\w", text, re.MULTILINE)]
    assert not missing, f"the docstring of titans_jax does not describe {missing}"


def test_types_are_declared():
    assert (importlib.resources.files("titans_jax") / "py.typed").is_file()
