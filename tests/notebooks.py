"""`python -m tests.notebooks [NAME ...]`: run colab/*.py, and write each .ipynb with its outputs and pictures.

The first code cell of each installs titans_jax where it is missing. It is written from the repository's address in
pyproject.toml, the only place that holds the address besides README's links.
"""

import base64
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COLAB = ROOT / "colab"
SETUP = """\
# Where titans_jax is missing, as in Colab, this installs it. A jax that is new enough stays as it is.
import importlib.util
import subprocess
import sys

SOURCE = "git+{address}"
if importlib.util.find_spec("titans_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"titans-jax[plot] @ {{SOURCE}}"], check=True)"""


def address() -> str:
    """The repository's address."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def cells(notebook: Any) -> list[tuple[str, str]]:
    """The kind and the source of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def digest(notebook: Any) -> str:
    """A hash of the sources: a notebook keeps that of the sources whose outputs it holds."""
    return hashlib.sha256(repr(cells(notebook)).encode()).hexdigest()


def read(path: Path) -> Any:
    """The notebook of a .py file, its first code cell written anew."""
    notebook = jupytext.read(path)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = SETUP.format(address=address())
    return notebook


def execute(notebook: Any, folder: Path) -> None:
    """Run a notebook in a folder, on this Python."""
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()


def _small(picture: str) -> str:
    """A PNG in base64, with 256 colours: a third of its size."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(256).save(file := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def refresh(path: Path) -> None:
    """Run the notebook of a .py file in an empty folder, and write both halves."""
    notebook = read(path)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if picture := output.get("data", {}).get("image/png"):
                    output.data["image/png"] = _small(picture)
    jupytext.write(notebook, path, fmt="py:percent")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", path], check=True)
    kept = ("kernelspec", "jupytext", "language_info")
    notebook.metadata = {name: value for name, value in notebook.metadata.items() if name in kept}
    notebook.metadata["ran"] = digest(notebook)
    nbformat.write(notebook, path.with_suffix(".ipynb"))
    print(path.stem, f"{path.with_suffix('.ipynb').stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for name in sys.argv[1:] or sorted(path.stem for path in COLAB.glob("*.py")):
        refresh(COLAB / f"{name}.py")
