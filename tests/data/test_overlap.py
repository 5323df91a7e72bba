"""Training pictures are no test set: what is found among both is refused, whatever the source and the names."""

from __future__ import annotations

import csv
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.data.label import overlap
from unlabeled.data.opened import Opened
from unlabeled.data.source import SourceConfig
from unlabeled.data.sources.arrays import Config as Arrays
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.sources.table import Config as Table
from unlabeled.data.sources.torchvision import Config as TorchVision
from unlabeled.errors import UserError

TRAIN, VAL = 30, 20
REFUSED = "of .* pictures of val that were looked at are in train too"


def noise(number: int, side: int = 9) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write(folder: Path, numbers: range, **how: Any) -> None:
    """Pictures of two classes; the same number is the same picture, under another name."""
    for place, number in enumerate(numbers):
        file = folder / "ab"[number % 2] / f"{place}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number)).save(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """train: 0 to 29; val: others; tenth, fifth: that share of 20 from train; all of them files of one size."""
    home = tmp_path / "pictures"
    write(home / "train", range(TRAIN))
    write(home / "val", range(100, 100 + VAL))
    for name, shared in (("tenth", 2), ("fifth", 4)):
        write(home / name, range(TRAIN - shared, TRAIN))
        write(home / name / "more", range(200, 200 + VAL - shared))
        for file in sorted((home / name / "more").glob("*/*")):
            file.rename(home / name / file.parent.name / f"more{file.name}")
        shutil.rmtree(home / name / "more")
    return home


def check(data: SourceConfig) -> None:
    opened = Opened(data)
    opened.check_apart(opened.train, opened.val)


def files(home: Path, **fields: Any) -> Files:
    return Files(**{"path": str(home), "train": "train", "val": "val", **fields})


def test_others_are_let_through_and_a_tenth_too(pictures: Path) -> None:
    check(files(pictures))
    check(files(pictures, val="tenth"))


@pytest.mark.parametrize("how", ["name", "path", "copy", "link", "renamed", "fifth", "all", "tar"])
def test_training_pictures_in_folders(pictures: Path, tmp_path: Path, how: str) -> None:
    fields: dict[str, Any] = {"val": "train"}
    if how == "path":
        fields |= {"val_path": str(pictures)}
    if how == "link":
        (tmp_path / "link").symlink_to(pictures / "train")
        fields = {"val": None, "val_path": str(tmp_path / "link")}
    if how == "copy":
        shutil.copytree(pictures / "train", tmp_path / "copy")
        fields = {"val": None, "val_path": str(tmp_path / "copy")}
    if how == "renamed":
        for number, file in enumerate((pictures / "train").glob("*/*")):
            (pictures / "renamed" / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, pictures / "renamed" / file.parent.name / f"{99 - number}.bmp")
        fields = {"val": "renamed"}
    if how == "fifth":
        fields = {"val": "fifth"}
    if how == "all":
        (pictures / "part").mkdir()
        (pictures / "val" / "a").rename(pictures / "part" / "a")
        (pictures / "train" / "b").rename(pictures / "part" / "b")
        (pictures / "train" / "a").rename(pictures / "part" / "c")
        fields = {"path": str(pictures / "part"), "train": "", "val": None, "val_path": str(pictures / "part")}
    if how == "tar":
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            tar.add(pictures / "train", "t")
        fields = {"val": "t", "val_path": str(tmp_path / "train.tar")}
    with pytest.raises(UserError, match=REFUSED):
        check(files(pictures, **fields))
    check(files(pictures, **fields, allow_overlap=True))


def test_pictures_of_one_name_and_size_are_not_one_picture(tmp_path: Path) -> None:
    write(tmp_path / "train", range(TRAIN))
    write(tmp_path / "val", range(100, 100 + TRAIN))
    data = files(tmp_path)
    assert Opened(data).train.fingerprint() == Opened(data).val.fingerprint()
    check(data)


def test_a_table_that_lists_a_picture_twice(pictures: Path) -> None:
    table = pictures / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for path in sorted((pictures / "train").glob("*/*")):
            rows.writerows([[path, path.parent.name, split] for split in ("train", "val")])
    with pytest.raises(UserError, match=REFUSED):
        check(Table(path=str(table), label="label", split="split", val="val"))


@pytest.mark.parametrize("val", ["train.npy", "copy.npy", "part.npy"])
def test_arrays(tmp_path: Path, val: str) -> None:
    everything = np.stack([noise(i) for i in range(TRAIN)])
    for name, array in {"train.npy": everything, "copy.npy": everything, "part.npy": everything[7:13]}.items():
        np.save(tmp_path / name, array)
        np.save(tmp_path / f"labels_{name}", np.arange(len(array)) % 2)
    fields: Any = {"train": str(tmp_path / "train.npy"), "train_labels": str(tmp_path / "labels_train.npy")}
    with pytest.raises(UserError, match=REFUSED):
        check(Arrays(**fields, val=str(tmp_path / val), val_labels=str(tmp_path / f"labels_{val}")))
    np.save(tmp_path / "others.npy", np.stack([noise(i) for i in range(200, 206)]))
    check(Arrays(**fields, val=str(tmp_path / "others.npy"), val_labels=str(tmp_path / "labels_part.npy")))


def test_parts_of_a_mixture(pictures: Path) -> None:
    apart = files(pictures, train="tenth")
    check(Mixture(sources=(apart, files(pictures, val=None, train="fifth"))))
    with pytest.raises(UserError, match=REFUSED):
        check(Mixture(sources=(apart, files(pictures, val=None, train="val"))))


def test_torchvisions_arguments(pictures: Path) -> None:
    def data(val: str) -> TorchVision:
        return TorchVision(dataset="ImageFolder", root=str(pictures / val), val={})

    with pytest.raises(UserError, match=REFUSED):
        check(data("train"))


def test_shapes_are_apart_without_being_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.data.sources.shapes.ShapesSource.image", lambda *_: pytest.fail("drawn"))
    data = Shapes(train_size=5000, val_size=500)
    found = overlap.overlap(Opened(data).train, Opened(data).val)
    assert found.looked == overlap.TESTED and not found.found


@pytest.mark.parametrize(("limit", "share"), [(1000, 1.0), (8, 0.4)])
def test_no_more_training_pictures_are_read_than_stated(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, limit: int, share: float
) -> None:
    """Of too many that may be equal, those at the same places are looked at, and some others."""
    monkeypatch.setattr(overlap, "READ", limit)
    monkeypatch.setattr(overlap, "TESTED", 5)
    data, read = files(pictures, val="train"), []
    train, val = Opened(data).train, Opened(data).val
    reads = type(train).read
    monkeypatch.setattr(type(train), "read", lambda self, i: read.append(self is train) or reads(self, i))
    assert overlap.overlap(train, val).share >= share
    assert sum(read) <= limit


def test_hugging_face(tmp_path: Path, pictures: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from unlabeled.data.sources.huggingface import Config as HuggingFace

    def table(numbers: range, split: Any = None) -> Any:
        rows = {"image": [noise(i) for i in numbers], "label": [i % 2 for i in numbers]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict(
            {**rows, "image": [Image.fromarray(x) for x in rows["image"]]}, features=features, split=split
        )

    def data(folder: str, **fields: Any) -> HuggingFace:
        return HuggingFace(path=str(tmp_path / folder), label="label", **fields)

    table(range(10)).save_to_disk(tmp_path / "alone")
    table(range(10), datasets.Split.TEST).save_to_disk(tmp_path / "named")
    splits = {"train": table(range(10)), "same": table(range(9, -1, -1)), "val": table(range(50, 60))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "several")

    assert len(Opened(data("alone")).train) == 10 and len(Opened(data("named", train="test")).train) == 10
    for one, names in ((data("alone", val="val"), "train"), (data("named"), "test")):
        with pytest.raises(UserError, match=rf"has no split '(val|train)'; it has \['{names}'\]"):
            Opened(one).split("val" if one.val else "train")
    with pytest.raises(UserError, match=r"has no split 'none'; it has \['same', 'train', 'val'\]"):
        _ = Opened(data("several", val="none")).val
    check(data("several", val="val"))
    for val in ("train", "same"):
        with pytest.raises(UserError, match=REFUSED):
            check(data("several", val=val))


@pytest.mark.parametrize("command", ["evaluate", "ladder"])
def test_commands_refuse_and_can_be_told(
    pictures: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from unlabeled.backbone.config import EncoderConfig
    from unlabeled.backbone.folder import IMAGENET, export_encoder

    tiny = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    export_encoder(tmp_path / "export", tiny.build((8, 8)), IMAGENET, "card", {})
    evaluate = ["evaluate", str(tmp_path / "export"), "--data", str(pictures), "--protocol", "knn"]
    ladder = ["ladder", str(tmp_path / "export"), str(pictures), "--rungs", "knn", "--fractions", "1"]
    arguments = {"evaluate": evaluate, "ladder": [*ladder, "--out", str(tmp_path / "out")]}[command]
    assert main([*arguments, "--train", "train", "--val", "train"]) == 2
    assert main([*arguments, "--train", ".", "--val", "."]) == 2
    assert "--allow-overlap" in capsys.readouterr().err
    assert main([*arguments, "--train", "train", "--val", "train", "--allow-overlap"]) == 0


def test_recipes_of_both_programs_refuse_and_can_be_told(pictures: Path, tmp_path: Path) -> None:
    from unlabeled.evaluate.evaluation import Evaluation
    from unlabeled.evaluate.splits import Splits
    from unlabeled.recipe import parse
    from unlabeled.stages.finetune import FinetuneRecipe
    from unlabeled.transfer.labels import Amount, labelled

    text = f"name: it\nencoder: nowhere\ndata: {{name: files, path: {pictures}, train: train, val: train}}"
    recipe, allowed = parse(FinetuneRecipe, text), parse(FinetuneRecipe, text, ["data.allow_overlap=true"])
    for look in (
        lambda r: labelled(Opened(r.data), Amount()),
        lambda r: Splits(Evaluation(), Opened(r.data), torch.device("cpu")).sources,
    ):
        with pytest.raises(UserError, match=r"data\.allow_overlap=true"):
            look(recipe)
        look(allowed)
