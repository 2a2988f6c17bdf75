"""Which files of a folder are trained on: by names as the field gives them, or refused."""

from pathlib import Path

import pytest

from titans_jax.data import DataConfig, load_sides
from titans_jax.data.parts import parts_of

HASH = "00000-of-00001-9c2a4e8fba31d1b0"


def shown(files: str) -> dict[str, str]:
    """The parts of files, their names separated by spaces."""
    return {part: " ".join(map(str, some)) for part, some in parts_of([Path(name) for name in files.split()]).items()}


@pytest.mark.parametrize(
    ("train", "valid", "test", "ignored"),
    [
        ("train.txt", "val.txt", "", ""),
        ("train.jsonl", "dev.jsonl", "", "README.md"),
        (f"data/train-{HASH}.parquet", "", f"data/test-{HASH}.parquet", "README.md"),
        ("train/a.txt train/b/c.txt", "valid/d.txt", "", "LICENSE README.txt train/README.md"),
        ("train/a.md", "val/b.md", "test/c.md", ""),
        ("train.txt", "validation.ndjson", "test.txt.gz", "prepare.py"),
        ("training_set.txt", "held-out.txt", "", ""),
        ("train.txt", "eval.txt", "", ""),
        ("train.txt", "dev.txt", "eval.txt", ""),
        ("MyStories-train.txt", "MyStories-VALID.TXT", "", ""),
        ("en/train.raw fr/train.raw", "en/val.raw fr/val.raw", "", ""),
        ("movies/train/pos/0.txt", "", "movies/test/neg/1.txt", "movies/imdb.vocab"),
        (f"train-{HASH}.parquet", "", "", "README.md"),
        ("texts/train_data/a.txt", "texts/val_data/b.txt", "", ""),
    ],
)
def test_names_of_the_field_are_parts(train, valid, test, ignored):
    want = {"train": train, "valid": valid, "test": test, "ignored": ignored}
    assert shown(" ".join(want.values())) == {part: files for part, files in want.items() if files}


@pytest.mark.parametrize(
    "files",
    [
        "README.md book.txt other.txt",
        "a/train.py a/test.py valid.md",
        "the-test-of-time.txt moby.txt",
        "src/a.c src/b.c test/CMakeLists.txt test/a.c test/b.c requirements-dev.txt requirements.txt",
        "a.c b.c c.c d.c e.c test/f.c test/val.txt",
        "bench/a.py training/b.py evaluation/c.py testing/d.py",
    ],
)
def test_a_folder_without_names_for_parts_is_text(files):
    assert shown(files) == {"train": files}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("book.txt val.txt", "names for held-out text and none for train: val.txt;"),
        ("books/a.txt test/b.txt", "names for held-out text and none for train: test;"),
        ("train.txt val.txt notes.txt", "names for parts, such as train.txt, and other text: notes.txt;"),
        ("train/a.txt train/test.txt", "a name for test and train at once: train/test.txt;"),
        ("train_test.txt", "a name for test and train at once"),
        ("train.csv test.csv", "parts in files that are not read; give .txt, .jsonl or .parquet: test.csv, train.csv;"),
        ("input.txt train.bin val.bin prepare.py", "parts in files that are not read"),
        ("dataset_dict.json train/state.json train/a.arrow test/b.arrow", "parts in files that are not read; give"),
        ("input.txt val.txt README.md prepare.py config.yaml", "names for held-out text and none for train: val.txt;"),
        ("train.txt train.txt.gz val.txt", "files packed and unpacked, perhaps the same text twice: train.txt.gz;"),
        ("a.py b.py c.py d/e.py f/train.txt f/val.txt", "names for parts, such as f/train.txt, and other text: d/e.py"),
        (" ".join(f"{i}.txt" for i in range(9)) + " train.txt", "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more; rename"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_the_files(files, message):
    with pytest.raises(ValueError) as error:
        shown(files)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_held_out_files_are_not_trained_on(tmp_path):
    for name in ("train/a.txt", "val/b.txt", "test/c.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    config = DataConfig(corpus=str(tmp_path))
    assert load_sides(config) == (["text of train/a.txt"], ["text of val/b.txt"])
    assert load_sides(DataConfig(corpus=str(tmp_path), split="test"))[1] == ["text of test/c.txt"]
    (tmp_path / "more.txt").touch()
    with pytest.raises(ValueError, match="^corpus '/.*': names for parts, such as test, and other text: more.txt"):
        load_sides(config)
