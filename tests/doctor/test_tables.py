"""Copies and leaks as a table, and a split that neither copies nor groups cross."""

from __future__ import annotations

import csv
import json
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY_PRETRAIN

from unlabeled.__main__ import main
from unlabeled.data.opened import Opened
from unlabeled.data.sources.table import Config as Table
from unlabeled.doctor.speed import Speed
from unlabeled.doctor.tables import grouped_split
from unlabeled.work import doctor as command

SHAPES = "{name: shapes, train_size: 42, val_size: 20, size: 16}"


def picture(number: int) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return noise.resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pictures of two classes in train and ten in val; pictures 0 to 3 of class a are in both."""
    monkeypatch.setattr(command, "measure", lambda *_: Speed(1000, 100, 95, 300, 8, 10**9))
    for split, count, first in (("train", 10, 0), ("val", 5, 100)):
        for label in "ab":
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                leaks = split == "val" and label == "a" and i < 4
                number = i if leaks else first + i + 50 * (label == "b")
                picture(number).save(folder / f"scan{i // 2}_{i}.{'jpg' if leaks and i == 0 else 'png'}", quality=95)
    Image.open(tmp_path / "pictures/train/b/scan0_0.png").save(tmp_path / "pictures/train/a/twin.bmp")
    text = TINY_PRETRAIN.replace(SHAPES, f"{{name: files, path: {tmp_path / 'pictures'}, train: train, val: val}}")
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("size: 16, mask", "size: 32, mask"), encoding="utf-8")
    return file


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_copies_and_leaks(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe.parent / "out" / "copies.csv"
    assert main(["doctor", str(recipe), "--csv", str(file)]) == 0
    pictures = recipe.parent / "pictures"
    found = {
        (r["kind"], *(str(Path(r[c]).relative_to(pictures)) for c in ("picture", "copy_of"))) for r in rows_of(file)
    }
    assert found == {
        ("exact", "train/b/scan0_0.png", "train/a/twin.bmp"),
        *(("exact", f"val/a/scan{i // 2}_{i}.png", f"train/a/scan{i // 2}_{i}.png") for i in (1, 2, 3)),
        ("near", "val/a/scan0_0.jpg", "train/a/scan0_0.png"),
    }
    twin = next(row for row in rows_of(file) if "twin" in row["copy_of"])
    assert (twin["split"], twin["class"], twin["copy_of_split"], twin["copy_of_class"]) == ("train", "b", "train", "a")
    assert "5 copies, 4 of them leaks" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("group", [None, r"/(train|val)/([ab]/scan\d+)", "folder"])
def test_a_split_that_is_a_data_set(group: str | None, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe.parent / "split.csv"
    options = [] if group is None else ["--group", group]
    share = "0.4" if group == "folder" else "0.2"
    assert main(["doctor", str(recipe), "--split", str(file), "--val-share", share, "--pictures", "3", *options]) == 0
    rows = rows_of(file)
    assert len(rows) == 31 and {row["split"] for row in rows} == {"train", "val"}

    by_pixels = defaultdict(set)
    by_name = defaultdict(set)
    for row in rows:
        path = Path(row["path"])
        assert path.is_file() and row["label"] == path.parent.name
        by_pixels[np.array(Image.open(path).convert("RGB")).tobytes()].add(row["split"])
        *_, split, label, name = path.parts
        by_name[(split, label) if group == "folder" else (split, label, name[:5])].add(row["split"])
    assert all(len(splits) == 1 for splits in by_pixels.values())
    leak = {row["split"] for row in rows if row["path"].endswith(("train/a/scan0_0.png", "val/a/scan0_0.jpg"))}
    assert len(leak) == 1, "near copies as well"
    if group:
        assert all(len(splits) == 1 for splits in by_name.values())
    data = Table(path=str(file), label="label", split="split", train="train", val="val")
    counts = Counter(row["split"] for row in rows)
    assert (len(Opened(data).train), len(Opened(data).val)) == (counts["train"], counts["val"])
    assert Opened(data).train.classes == ("a", "b")
    assert "data: {name: table, path:" in capsys.readouterr().out


def test_every_class_gets_about_its_share() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(4, 4000, p=[0.6, 0.3, 0.08, 0.02])
    group_of = random.integers(0, 1500, 4000)
    held = grouped_split(group_of, labels, 0.2, seed=1)
    for group in np.unique(group_of):
        assert len(set(held[group_of == group].tolist())) == 1
    for label in range(4):
        assert held[labels == label].mean() == pytest.approx(0.2, abs=0.04)
    assert np.array_equal(held, grouped_split(group_of, labels, 0.2, seed=1))
    assert not np.array_equal(held, grouped_split(group_of, labels, 0.2, seed=2))
    # what is all of a class stays in train
    assert not grouped_split(np.zeros(5, np.int64), np.zeros(5, np.int64), 0.4, 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group", "folder"], "Add --split"),
        (["--split", "x.csv", "--group", "(a"], "neither 'folder' nor a regular expression"),
        (["--val-share", "1"], "--val-share 1: expected a share between 0 and 1"),
        (["--hours", "0"], "--hours 0: expected more than 0"),
        (["--split", "/proc/x.csv"], "--split /proc/x.csv cannot be written"),
        (["--split", "one.csv", "--group", "pictures"], "no group is small enough for a val of 0.2 of 31 pictures"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str],
    message: str,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(recipe.parent)
    assert main(["doctor", str(recipe), *options]) == 2
    assert message in capsys.readouterr().err


def test_pictures_in_a_tar_have_no_paths(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(recipe.parent / "all.tar", "w") as tar:
        tar.add(recipe.parent / "pictures", "")
    changes = [f"data.path={recipe.parent}/all.tar", "data.val=null"]
    assert main(["doctor", str(recipe), *changes, "--split", str(recipe.parent / "split.csv")]) == 2
    assert "is no file of its own. Unpack" in capsys.readouterr().err
    # a table of copies can be had all the same
    assert main(["doctor", str(recipe), *changes, "--json", "--csv", str(recipe.parent / "copies.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["copies"]["train"]["exact"]["count"] == len(
        rows_of(recipe.parent / "copies.csv")
    )
