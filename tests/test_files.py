"""Files are replaced atomically; results are finite numbers."""

import ast
import json
import os
import platform
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from titans_jax import files, results


def test_a_file_is_replaced_or_left_as_it_was(tmp_path):
    path = tmp_path / "new" / "file.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    files.write(path, "é")
    assert path.read_bytes() == "é".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_lock_says_who_holds_it_and_ends_with_its_process(tmp_path, run_python):
    locking = f"""import os
from titans_jax import files
lock = files.locked({str(tmp_path)!r})
lock.__enter__()
try:
    files.locked({str(tmp_path)!r}).__enter__()
except ValueError:
    os._exit(9)"""
    run_python("-c", locking, code=9)
    with files.locked(tmp_path):
        who = rf"{tmp_path} is in use by process {os.getpid()} on {platform.node()} since \d{{4}}-.*give another"
        with pytest.raises(ValueError, match=who), files.locked(tmp_path):
            pass
        with files.locked(tmp_path / "other"):
            pass


def test_removing_a_link_keeps_what_it_points_to(tmp_path):
    (tmp_path / "kept" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "missing"):
        files.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept" / "folder").is_dir()
    files.remove(tmp_path / "kept")
    assert not [*tmp_path.iterdir()]


def test_result(tmp_path):
    path = results.write_result(tmp_path / "new", {"loss": jnp.float32(0.5), "steps": np.int64(3), "policy": "stream"})
    assert json.loads(path.read_text()) == {"loss": 0.5, "steps": 3, "policy": "stream"}
    with pytest.raises(ValueError, match="result loss=nan is not finite"):
        results.write_result(tmp_path / "new", {"loss": jnp.nan})
    with pytest.raises(ValueError, match="curve: expected a number"):
        results.write_result(tmp_path / "new", {"curve": [1, 2]})
    assert json.loads(path.read_text())["loss"] == 0.5
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    ROOT / "train.py",
    *(path for top in ("titans_jax", "configs", "colab") for path in (ROOT / top).rglob("*.py")),
]


def without_encoding(tree):
    """The lines that open a text and leave the encoding to the machine."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        binary = any(isinstance(value, ast.Constant) and "b" in str(value.value) for value in call.args)
        opens = name.rpartition(".")[2] in ("open", "fdopen", "TemporaryFile") and name != "os.open" and not binary
        if (opens or name.endswith((".read_text", ".write_text")) and name != "data.read_text") and not any(
            word.arg == "encoding" for word in call.keywords
        ):
            yield call.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_text_file_is_opened_as_utf_8(path):
    assert not [*without_encoding(ast.parse(path.read_text(encoding="utf-8")))]
