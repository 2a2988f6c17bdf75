"""Corpora of the hubs: libraries that stand in for the network's, and data sets made here by the real ones."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets

from titans_jax.data import DataConfig, load_documents, load_parts, load_sides, provenance


class Table(dict):
    """As much of a `datasets.Dataset` as is used."""

    column_names = property(lambda self: list(self))


@pytest.fixture
def fetched(monkeypatch):
    """What `datasets.load_dataset` was asked for, and what it gives."""
    asked, gives = [], {}

    def load_dataset(*what):
        asked.append(what)
        if not gives:
            raise ConnectionError("no route to host\nat all")
        return gives

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked, gives


def test_a_dataset_of_hugging_face_has_its_parts_and_is_asked_for_once(fetched):
    asked, gives = fetched
    lines = {"text": [" = One = \n", "", " first \n"]}
    gives |= {"train": Table(lines), "validation": Table(text=["a document"]), "test": Table(text=["another"])}
    spec = "hf:someone/wikitext:wikitext-2-raw-v1"
    train, kept = load_sides(DataConfig(corpus=spec))
    assert (train, kept) == ([" = One = \n \n first \n"], ["a document"])
    assert load_documents(spec, "test") == ["another"]
    assert asked == [("someone/wikitext", "wikitext-2-raw-v1")]
    assert "https://huggingface.co/datasets/someone/wikitext says" in provenance(spec)["licence"]


def test_what_hugging_face_does_not_give_is_one_line(fetched):
    _, gives = fetched
    with pytest.raises(ValueError, match="corpus 'hf:none' cannot be loaded: ConnectionError: no route to host$"):
        load_documents("hf:none")
    gives |= {"train": Table(body=["x"])}
    with pytest.raises(ValueError, match="corpus 'hf:bodies': train has no column 'text', only body"):
        load_documents("hf:bodies")


def test_a_part_to_validate_with_has_many_names_and_a_row_that_is_no_text_is_named(fetched):
    _, gives = fetched
    gives |= {"train": Table(text=["one", None, 3]), "dev": Table(text=[b"two"])}
    assert load_documents("hf:dev", "valid") == ["two"]
    with pytest.raises(ValueError, match="hf:dev, train, row 3: the text is int, not a string"):
        load_documents("hf:dev")


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"corpus 'hf:squad' needs a library: pip install 'titans-jax\[hf\]'"):
        load_documents("hf:squad")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_dataset_saved_by_the_real_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install titans-jax[hf]")
    texts = {"train": ["one", "two"], "validation": ["three"]}
    parts = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in texts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert load_sides(DataConfig(corpus=f"hf:{tmp_path / 'saved'}")) == (["one", "two"], ["three"])


class Verses(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A data set of two parts, made here."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        kinds = tensorflow_datasets.features
        features = kinds.FeaturesDict({"verse": kinds.Text(), "number": kinds.Scalar(np.int32)})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ("train", "test")}

    def _generate_examples(self, name):
        for number in range(20):
            yield number, {"verse": f"{name} é {number}\n", "number": number}


def test_a_dataset_of_tfds_is_read_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert sorted(load_parts("tfds:verses")) == ["test", "train"]
    assert sorted(load_documents("tfds:verses")) == sorted(f"train é {number}\n" for number in range(20))
    train, kept = load_sides(DataConfig(corpus="tfds:verses", split="test"))
    assert len(train) == len(kept) == 20 and all(verse.startswith("test é") for verse in kept)
    assert load_documents("tfds:verses") == train  # in one order


def test_an_unknown_dataset_of_tfds_is_one_line():
    with pytest.raises(ValueError, match="corpus 'tfds:lm1c' cannot be loaded: DatasetNotFoundError") as error:
        load_documents("tfds:lm1c")
    assert "\n" not in str(error.value)
