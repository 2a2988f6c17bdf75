"""Corpora of the hubs: their own libraries download them, or read them from a cache without a network."""

import functools
import os
from collections.abc import Callable
from typing import Any

from titans_jax.data.formats import from_rows, row_text
from titans_jax.files import expand

Parts = dict[str, Callable[[], list[str]]]


@functools.lru_cache(maxsize=1)
def hugging_face(name: str) -> Parts:
    """The parts of a dataset of Hugging Face: "NAME" or "NAME:CONFIG", or a folder that `save_to_disk` wrote.

    Raises ValueError: the library is not installed, the dataset cannot be loaded, or it has no column `text`.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"corpus 'hf:{name}' needs a library: pip install 'titans-jax[hf]'") from None
    folder = expand(name)
    path, _, config = name.partition(":")
    try:
        found: Any = datasets.load_from_disk(folder) if folder.is_dir() else datasets.load_dataset(path, config or None)
    except Exception as error:  # whatever the library, or the network below it, raises
        raise _not_loaded(f"hf:{name}", error) from None
    tables = found if isinstance(found, dict) else {"train": found}
    for part, table in tables.items():
        if "text" not in table.column_names:
            raise ValueError(f"corpus 'hf:{name}': {part} has no column 'text', only {', '.join(table.column_names)}")
    return _with_valid(
        {part: functools.partial(_texts, table, f"hf:{name}, {part}, row") for part, table in tables.items()}
    )


def _texts(table: Any, where: str) -> list[str]:
    return from_rows(row_text(cell, where, number) for number, cell in enumerate(table["text"], 1))


@functools.lru_cache(maxsize=1)
def tfds(name: str) -> Parts:
    """The parts of a dataset of TensorFlow Datasets, "NAME" or "NAME/CONFIG", from $TFDS_DATA_DIR or its default.

    Raises ValueError: the dataset cannot be loaded, or has no text feature, or several and none is called "text".
    """
    import tensorflow_datasets

    try:
        directory = os.environ.get("TFDS_DATA_DIR")
        builder = tensorflow_datasets.builder(name, data_dir=directory, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # whatever the library, or the network below it, raises
        raise _not_loaded(f"tfds:{name}", error) from None
    features = builder.info.features
    texts = [key for key in features if isinstance(features[key], tensorflow_datasets.features.Text)]
    if "text" not in texts and len(texts) != 1:
        raise ValueError(f"corpus 'tfds:{name}': no feature is clearly the text; it has {', '.join(features)}")
    key = "text" if "text" in texts else texts[0]

    def read(part: str) -> list[str]:
        rows = enumerate(builder.as_data_source(split=part), 1)
        return [row_text(row[key], f"tfds:{name}, {part}, row", number) for number, row in rows]

    return _with_valid({part: functools.partial(read, part) for part in builder.info.splits})


def _with_valid(parts: Parts) -> Parts:
    """The parts, the one to validate with under its name here."""
    valid = next((name for name in ("valid", "validation", "val", "dev") if name in parts), None)
    return {"valid" if part == valid else part: read for part, read in parts.items()}


def _not_loaded(spec: str, error: Exception) -> ValueError:
    reason = next(iter(str(error).splitlines()), "")
    return ValueError(f"corpus {spec!r} cannot be loaded: {type(error).__name__}: {reason}")
