"""The notebooks of colab/: both halves say the same, outputs are those of the sources, and each runs as in Colab."""

import re
import site
import subprocess
import sys
import venv
from pathlib import Path

import jupytext
import nbformat
import pytest

from tests.notebooks import COLAB, ROOT, SETUP, address, cells, digest, execute

NOTEBOOKS = sorted(COLAB.glob("*.py"))
STRICT = (
    "import warnings\nfor module in ('titans_jax', '__main__'):\n    warnings.filterwarnings('error', module=module)"
)
LARGEST = 1_500_000  # bytes of a notebook with its pictures
EXECUTE = "from nbclient.cli import main; main()"


def test_every_notebook_is_a_pair():
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in COLAB.glob("*.ipynb")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_its_sources(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    command = f"run: python -m tests.notebooks {path.stem}"
    assert cells(text) == cells(notebook) and notebook.metadata["ran"] == digest(notebook), command
    assert pictures(notebook), "it shows no picture"
    assert path.with_suffix(".ipynb").stat().st_size < LARGEST
    nbformat.validate(notebook)
    kind, first = cells(text)[0]
    assert kind == "markdown" and first.startswith("# ") and "see" in first  # what the reader will see
    assert next(source for kind, source in cells(text) if kind == "code") == SETUP.format(address=address())


def test_each_notebook_has_a_badge_and_all_name_one_repository():
    text = (COLAB / "README.md").read_text(encoding="utf-8")
    found = re.findall(
        r"\[(\d)\]: https://colab\.research\.google\.com/github/(\S+)/blob/main/colab/(\S+)\.ipynb", text
    )
    repository = address().removeprefix("https://github.com/")
    assert found == [(str(i), repository, path.stem) for i, path in enumerate(NOTEBOOKS)]
    assert all(f"[badge]][{i}] [" in text and f"]({path.stem}.ipynb)" in text for i, path in enumerate(NOTEBOOKS))
    assert f"{repository}/blob/main/colab/00_quickstart.ipynb" in (ROOT / "README.md").read_text(encoding="utf-8")


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder, on a CPU; a warning from titans_jax or from the notebook is an error."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(path):
        notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
        execute(notebook, tmp_path)
        return notebook

    return run


def warned(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    return said if "Warning" in said else ""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)  # the quickstart runs below
def test_a_notebook_runs_and_shows_pictures(path, run_notebook):
    notebook = run_notebook(path)
    assert pictures(notebook), "it shows no picture"
    assert not warned(notebook.cells)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
def test_the_quickstart_installs_the_library_and_runs_as_in_colab(tmp_path, monkeypatch):
    """A Python with everything but titans_jax, an empty folder, and a checkout in place of the address."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    ask = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    # An editable install leaves a folder titans_jax among the packages, with the configs alone.
    for entry in (entry for folder in site.getsitepackages() for entry in Path(folder).iterdir()):
        if "titans_jax" not in entry.name and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    (tmp_path / "colab").mkdir()
    notebook = nbformat.read(COLAB / "00_quickstart.ipynb", as_version=4)
    here = f"{STRICT}\nimport titans_jax; print('from', titans_jax.__file__)"
    notebook.cells = [notebook.cells[1], nbformat.v4.new_code_cell(here), *notebook.cells[2:]]
    notebook.cells[0].source = notebook.cells[0].source.replace(f"git+{address()}", ROOT.as_uri())
    nbformat.write(notebook, tmp_path / "colab/quickstart.ipynb")
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [python, "-c", EXECUTE, "quickstart.ipynb", "--inplace", "--timeout=600"]
    done = subprocess.run(command, cwd=tmp_path / "colab", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = nbformat.read(tmp_path / "colab/quickstart.ipynb", as_version=4)
    assert f"from {tmp_path}/env" in ran.cells[1].outputs[0].text
    assert not warned(ran.cells[1:])
    assert len(pictures(ran)) == 2 and sys.prefix not in ran.cells[1].outputs[0].text
