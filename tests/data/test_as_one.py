"""Folders of training and of test pictures that one run would read as one are named, wherever they lie."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support import TINY_PRETRAIN

from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.launch.program import main


def write(root: Path, *names: str) -> Files:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(root / name)
    return Files(path=str(root))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train/a/0.png", "val/a/0.png"], ["train", "val"]),
        (["train/0.png", "TEST/0.png", "val/0.png"], ["train", "TEST", "val"]),
        (
            ["set/images/training/0.png", "set/images/validation/0.png"],
            ["set/images/training", "set/images/validation"],
        ),
        (["cat/train/0.png", "cat/test/0.png", "dog/x.png"], ["cat/train", "cat/test"]),
        (["train/0.png", "bus/0.png"], []),  # classes
        (["val/0.png", "test/0.png"], []),
        (["train/0.png", "old/test/0.png"], []),  # not side by side
        (["train.png", "val.png"], []),
    ],
)
def test_splits_side_by_side(names: list[str], found: list[str], tmp_path: Path) -> None:
    data = write(tmp_path, *names)
    assert sorted(data.read_as_one(Opened(data).train)) == sorted(found)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / name, name)
    tarred = Files(path=str(tmp_path / "all.tar"))
    assert sorted(tarred.read_as_one(Opened(tarred).train)) == sorted(found)


def test_what_is_read_apart_or_below_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "in/train/a/0.png", "in/train/b/0.png", "in/val/a/0.png", "other/0.png")
    apart = Files(path=str(tmp_path), train="in/train", val="in/val")
    assert apart.read_as_one(Opened(apart).train) == []
    below = Files(path=str(tmp_path), train="in")
    assert below.read_as_one(Opened(below).train) == ["in/train", "in/val"]
    mixed = Mixture(name="mixture", sources=({"name": "files", "path": str(tmp_path / "in")},))  # type: ignore[arg-type]
    assert mixed.read_as_one(Opened(mixed).train) == ["train", "val"]


def test_the_plan_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "set", *(f"{split}/{i}.png" for split in ("train", "val") for i in range(8)))
    shapes = "{name: shapes, train_size: 42, val_size: 20, size: 16}"
    text = TINY_PRETRAIN.replace(shapes, f"{{name: files, path: {tmp_path}/set}}")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    arguments = [str(tmp_path / "recipe.yaml"), f"run.output={tmp_path}/run", "--dry-run"]
    assert main("pretrain", arguments) == 0
    said = capsys.readouterr().err
    assert "train, val are all trained on; data.train=train reads the first alone, data.val=val" in said
    assert main("pretrain", [*arguments, "data.train=train"]) == 0
    assert "trained on;" not in capsys.readouterr().err
