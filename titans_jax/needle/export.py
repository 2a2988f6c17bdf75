"""A trained Titan-Min as files that run with jax alone: one for each length, for any number of sequences.

DIR/length_64.stablehlo, ...   tokens int32 [n, 64] -> logits float32 [n, 64], weights inside
DIR/export_manifest.json       inputs, outputs, sha256 and versions of these files
DIR/run.py                     reads tokens, prints positions: `titans_jax.needle.standalone`
"""

import hashlib
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export as jax_export

from titans_jax import files
from titans_jax.data.synthetic import NEEDLE_VOCAB, PAD
from titans_jax.export import PLATFORMS
from titans_jax.needle import standalone
from titans_jax.needle.model import TitanMin

MANIFEST = "export_manifest.json"


def export(model: TitanMin, folder: Path) -> Path:
    """Write the model's programs, their manifest and a script that runs them; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens)[0])
    written = []
    for length in sorted(model.config.lengths):
        (rows,) = jax_export.symbolic_shape("rows")
        program = jax_export.export(run, platforms=PLATFORMS)(jax.ShapeDtypeStruct((rows, length), jnp.int32))
        data = program.serialize()
        name = f"length_{length}.stablehlo"
        files.write(folder / name, data)
        written.append({"file": name, "length": length, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {
        "files": written,
        "input": "tokens int32 [n, length], n of any size",
        "output": "logits float32 [n, length]; the needle is where they are largest",
        "vocabulary": NEEDLE_VOCAB,
        "pad": PAD,
        "platforms": PLATFORMS,
        "calling_convention_version": program.calling_convention_version,
        "jax": jax.__version__,
    }
    files.write_json(folder / MANIFEST, manifest)
    shutil.copyfile(standalone.__file__, folder / "run.py")
    return folder / MANIFEST
