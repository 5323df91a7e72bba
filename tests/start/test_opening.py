"""A path to pictures: which labels it has, and what is said where there are no pictures."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from pictured import classes, drawn, photos
from PIL import Image

from unlabeled.errors import UserError
from unlabeled.start.layout import ALBUM
from unlabeled.start.opening import place


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    found = place(str(photos(tmp_path / "a")))
    assert (found.labels, found.classes, found.note) == ("none", 0, "")
    assert found.fields == {"name": "files", "path": str(tmp_path / "a"), "train": "", "val": None}


def test_folders_of_classes_without_a_val(tmp_path: Path) -> None:
    found = place(str(classes(tmp_path)))
    assert (found.labels, found.classes, found.each, found.labelled) == ("flat", 2, 6, 12)


@pytest.mark.parametrize("names", [("2019", "2020-05 Rome"), ("100CANON", "101CANON"), ("part-0001", "part-0002")])
def test_albums_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    assert place(str(classes(tmp_path, names=names))).labels == "albums"


@pytest.mark.parametrize("name", ["7", "n01440764", "cat", "2CV", "Class 3", "good", "forest_road", "19th-century"])
def test_names_that_are_classes(name: str) -> None:
    assert not ALBUM.fullmatch(name)


def test_folders_with_pictures_beside_them_or_one_each_are_albums(tmp_path: Path) -> None:
    beside = classes(tmp_path / "beside")
    Image.fromarray(drawn(999)).save(beside / "loose.png")
    found = place(str(beside))
    assert found.labels == "albums" and found.fields["stray"] == "keep"
    assert place(str(classes(tmp_path / "one", 1, names=tuple("abcdefghijkl")))).labels == "albums"


def test_train_and_val_with_classes(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "test", 2, first=500)
    classes(tmp_path / "valid", 2, first=700)
    found = place(str(tmp_path))
    assert (found.labels, found.fields["train"], found.fields["val"]) == ("splits", "train", "valid")
    assert found.labelled == 16 and found.each == 6


def test_train_and_val_without_classes_are_read_as_one(tmp_path: Path) -> None:
    photos(tmp_path / "train")
    photos(tmp_path / "val", 3, first=200)
    found = place(str(tmp_path))
    assert found.labels == "none" and found.fields["train"] == "" and found.fields["val"] is None
    assert "read as one" in found.note


def test_a_tar(tmp_path: Path) -> None:
    photos(tmp_path / "a")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a", "a")
    assert place(str(tmp_path / "a.tar")).labels == "none"


def test_tables(tmp_path: Path) -> None:
    photos(tmp_path / "a", 14)
    rows = [f"{i},a/{i}.png,{'cd'[i % 2]},{'train' if i < 12 else 'test'}" for i in range(14)]
    (tmp_path / "t.csv").write_text("\n".join(["number,file,species,set", *rows]), encoding="utf-8")
    found = place(str(tmp_path / "t.csv"))
    assert (found.labels, found.classes, found.each) == ("splits", 2, 6)
    told = {"image": "file", "label": "species", "split": "set", "train": "train", "val": "test"}
    assert told.items() <= found.fields.items()
    (tmp_path / "u.tsv").write_text("odd\n" + "\n".join(f"a/{i}.png" for i in range(12)), encoding="utf-8")
    assert place(str(tmp_path / "u.tsv")).fields["image"] == "odd"


def spoiled(folder: Path) -> Path:
    (folder / "movie.mp4").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "no pictures in .*Expected files ending in"),
        (lambda folder: folder / "nothing", "does not exist; expected a folder"),
        (lambda folder: photos(folder, 1), r"has 1 picture; expected at least 12"),
        (lambda folder: photos(folder, 1) / "0.png", "is one picture; expected a folder"),
        (spoiled, r"1 \.mp4: take the pictures out of each by: mkdir FOLDER && ffmpeg"),
        (lambda folder: spoiled(folder) / "movie.mp4", r"movie.mp4 is not read; .*ffmpeg -i \S*movie.mp4"),
        (lambda folder: Path(__file__), "is a file; expected a folder of pictures"),
        (lambda folder: folder / "no.csv", "does not exist; expected a .csv"),
    ],
)
def test_no_pictures(tmp_path: Path, make: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        place(str(make(tmp_path)))  # type: ignore[operator]


def test_a_table_without_paths(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,label\nmissing.png,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no column of .* has paths of files; found the columns name, label"):
        place(str(tmp_path / "t.csv"))
