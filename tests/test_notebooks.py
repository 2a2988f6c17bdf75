"""The notebooks of colab/: each .py and its .ipynb say the same, and run as they are."""

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.py"))
STRICT = (
    "import warnings\nfor module in ('titans_jax', '__main__'):\n    warnings.filterwarnings('error', module=module)"
)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_is_a_pair():
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in (ROOT / "colab").glob("*.ipynb")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_of_a_pair_say_the_same(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert cells(text) == cells(notebook), f"run: jupytext --to ipynb colab/{path.name}"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    nbformat.validate(notebook)
    kind, first = cells(text)[0]
    assert kind == "markdown" and first.startswith("# ") and "see" in first  # what the reader will see


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder, on a CPU; a warning from titans_jax or from the notebook is an error."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))

    def run(path):
        notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
        where = {"metadata": {"path": tmp_path}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
        return notebook

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_pictures(path, run_notebook):
    notebook = run_notebook(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if "image/png" in output.get("data", {})], "it shows no picture"
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in said, said
