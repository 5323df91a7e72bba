"""The contract of sources, for every file of `sources/` and for modules outside it (`--kind source=MODULE`)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxed import write_coco, write_yolo
from PIL import Image
from pydantic import BaseModel, ValidationError

from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.data.source import SOURCES, AnyData, Source, SourceConfig
from unlabeled.data.view.views import View
from unlabeled.recipe import dump, parse

SOME = 8  # images are looked at of each split
COUNTS = {"train": 6, "val": 4}

every_source = pytest.mark.every_kind("source")


class Section(BaseModel, frozen=True, extra="forbid"):
    data: AnyData


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images of two classes in folders, in a table and in arrays."""
    home, rows = tmp_path_factory.mktemp("sources"), ["path,label,split"]
    for split, count in COUNTS.items():
        stack = np.random.default_rng(count).integers(256, size=(count, 12, 10, 3), dtype=np.uint8)
        np.save(home / f"{split}.npy", stack)
        np.save(home / f"{split}_labels.npy", np.arange(count) % 2)
        for number, pixels in enumerate(stack):
            file = home / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
            rows.append(f"{file},{'ab'[number % 2]},{split}")
    (home / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    return home


def settings(name: str, home: Path) -> dict[str, Any]:
    """What the package's own sources need to find the images."""
    files = {"name": "files", "path": str(home), "train": "train", "val": "val"}
    if name == "huggingface" and not (home / "saved").exists():
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        parts = datasets.DatasetDict()
        for split in COUNTS:
            found = sorted((home / split).rglob("*.png"))
            cells = [{"bytes": file.read_bytes(), "path": None} for file in found]
            rows = {"image": cells, "label": [file.parent.name for file in found]}
            parts[split] = datasets.Dataset.from_dict(rows, features=features)
        parts.save_to_disk(home / "saved")
    if name in ("coco", "yolo") and not (home / name).exists():
        for first, split in enumerate(COUNTS):
            (write_coco if name == "coco" else write_yolo)(home / name, split, COUNTS[split], 100 * first)
    boxes = {"path": str(home / name)}
    arrays = {split: str(home / f"{split}.npy") for split in COUNTS}
    labels = {f"{split}_labels": str(home / f"{split}_labels.npy") for split in COUNTS}
    return {
        "files": files,
        "mixture": {"sources": [files, {"name": "shapes", "train_size": 5, "val_size": 3, "size": 16}]},
        "shapes": {"train_size": 12, "val_size": 7, "size": 16},
        "arrays": {**arrays, **labels},
        "table": {"path": str(home / "table.csv"), "label": "label", "split": "split", "val": "val"},
        "huggingface": {"path": str(home / "saved"), "label": "label", "val": "val"},
        "coco": {**boxes, "train": "train", "train_boxes": "train.json", "val": "val", "val_boxes": "val.json"},
        "yolo": {**boxes, "val": "images/val"},
        "dataset": {"path": "torchvision.datasets:ImageFolder", "train": {"root": str(home / "train")}},
        "torchvision": {"dataset": "ImageFolder", "root": str(home / "train"), "train": {}},
    }.get(name, {})


@pytest.fixture
def config(name: str, section: dict[str, Any], home: Path) -> SourceConfig:
    found = SOURCES.kind(name).model_validate({**settings(name, home), **section})
    assert isinstance(found, SourceConfig)
    return found


def splits(config: SourceConfig) -> list[Source]:
    """The images to train on, and those to evaluate on where there are some."""
    opened = Opened(config)
    return [opened.train, opened.val] if config.has_val else [opened.train]


@every_source
def test_images_and_labels(config: SourceConfig) -> None:
    for source in splits(config):
        assert len(source) > 0 and (source.labels.shape, source.labels.dtype) == ((len(source),), np.int64)
        assert all(isinstance(name, str) for name in source.classes) and len(set(source.classes)) == len(source.classes)
        assert source.labels.min() >= -1 and source.labels.max() < len(source.classes)
        for i in range(min(SOME, len(source))):
            image = source.image(i)
            assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == config.channels
            assert torch.equal(source.image(i), image), "a number names the same image"
            assert isinstance(source.key(i), str) and source.key(i) and isinstance(source.name(i), bytes)
            assert bool(source.read(i)) >= source.encoded
            inner, number = source.origin(i)
            assert torch.equal(inner.image(number), image)
        assert source.marks is None or len(source.marks) == len(source)


@every_source
def test_the_fingerprint_is_that_of_the_images(config: SourceConfig) -> None:
    found = [source.fingerprint() for source in splits(config)]
    assert all(int(each, 16) >= 0 for each in found) and len(set(found)) == len(found)
    assert [source.fingerprint() for source in splits(config)] == found


@every_source
def test_travels_to_workers(config: SourceConfig) -> None:
    """Before an image was read and after it."""
    for source in splits(config):
        copies = [pickle.loads(pickle.dumps(source)), (source.image(0), pickle.loads(pickle.dumps(source)))[1]]
        for other in copies:
            assert torch.equal(other.image(0), source.image(0)) and other.fingerprint() == source.fingerprint()
            assert np.array_equal(other.labels, source.labels) and other.classes == source.classes


@every_source
def test_other_labels_are_those_of_a_copy(config: SourceConfig) -> None:
    source = Opened(config).train
    labels, classes = source.labels.copy(), source.classes
    other = source.relabelled(np.full(len(source), 1, np.int64), ("x", "y"))
    assert other.classes == ("x", "y") and set(other.labels.tolist()) == {1}
    assert np.array_equal(source.labels, labels) and source.classes == classes
    assert torch.equal(other.image(0), source.image(0))


@every_source
def test_views_are_cut_from_it(config: SourceConfig) -> None:
    dataset = ViewDataset(Opened(config).train, (View(size=8, jitter=None),), patch=4, seed=0)
    batch = collate([dataset[Position(0, 0)]])
    assert batch.crops[0].pixels.shape[-3:] == (config.channels, 8, 8)


@every_source
def test_settings(config: SourceConfig, section: dict[str, Any]) -> None:
    config.check_channels(config.channels)
    assert config.name == section["name"]
    assert parse(Section, dump(Section(data=config))).data == config
    with pytest.raises(ValidationError):
        config.name = "other"
    with pytest.raises(ValidationError):
        type(config).model_validate({**config.model_dump(), "no_such_field": 1})
