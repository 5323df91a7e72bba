"""A user's own data set as a source: every form of item, its labels, its faults, and exact runs."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import unlabeled
from unlabeled.data.opened import Opened
from unlabeled.data.sources.dataset import Config, give
from unlabeled.errors import BadSample, UserError

COUNT = 12
CODE = """
import numpy as np

class Noise:
    def __init__(self, count, first=0):
        self.count, self.first = count, first
        self.targets = [(first + i) % 3 for i in range(count)]
        self.classes = ["ant", "bee", "cow"]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return np.random.default_rng(self.first + i).integers(256, size=(20, 16, 3), dtype=np.uint8), self.targets[i]

def build(count):
    return Noise(count)
"""
RECIPE: dict[str, Any] = {
    "name": "own",
    "data": {"name": "shapes", "size": 16},
    "method": {
        "name": "simmim",
        "view": {"size": 16, "mask": {"name": "random", "ratio": 0.5}},
        "encoder": {"model": "vit_tiny_patch16_224", "patch_size": 4, "width": 16, "depth": 1, "heads": 2},
    },
    "train": {"epochs": 2, "batch_size": 4},
    "optim": {"name": "adamw", "warmup_epochs": 0},
    "look": None,
    "run": {"device": "cpu", "workers": 0, "page": False, "checkpoint_every": 1},
}


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(256, size=(20, 16, 3), dtype=np.uint8)


class Mine(Dataset[Any]):
    """Noise; `form` of its items."""

    def __init__(self, form: str = "array") -> None:
        self.form = form

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> Any:
        image = pixels(i)
        return {
            "array": image,
            "pillow": (Image.fromarray(image), i % 3),
            "tensor": [torch.from_numpy(image).permute(2, 0, 1), torch.tensor(i % 3)],
            "unit": (torch.from_numpy(image).permute(2, 0, 1) / 255, "abc"[i % 3], "more"),
            "named": {"image": image, "label": float(i % 3)},
            "random": np.roll(image, random.randrange(1000)),
            "none": None,
        }[self.form]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_noise.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_noise"


@pytest.mark.parametrize("form", ["array", "pillow", "tensor", "unit", "named"])
def test_every_form_of_item(form: str) -> None:
    config = Config.model_validate({**give(Mine(form)), "labels": form != "array"})
    source = Opened(config).train
    for i in range(COUNT):
        assert torch.equal(source.image(i), torch.from_numpy(pixels(i)).permute(2, 0, 1))
    names = {"array": (), "unit": ("a", "b", "c")}.get(form, ("0", "1", "2"))
    assert source.classes == names
    assert source.labels.tolist() == ([-1] * COUNT if form == "array" else [i % 3 for i in range(COUNT)])
    assert source.fingerprint() == Opened(config).train.fingerprint() and source.key(3).endswith("Mine/train[3]")


def test_named_by_its_module(module: str) -> None:
    config = Config(path=f"{module}:Noise", train={"count": 7}, val={"count": 5, "first": 7})
    opened = Opened(config)
    assert (len(opened.train), len(opened.val)) == (7, 5)
    assert opened.train.classes == ("ant", "bee", "cow") and opened.val.labels.tolist() == [1, 2, 0, 1, 2]
    assert torch.equal(opened.val.image(2), torch.from_numpy(pixels(9)).permute(2, 0, 1))
    built = Opened(Config(path=f"{module}:build", train={"count": 7})).train
    assert built.fingerprint() == opened.train.fingerprint() != opened.val.fingerprint()


def test_random_transforms_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = Opened(Config.model_validate(give(Mine("random")))).train
    assert "gives other pixels when an image is read again" in caplog.text
    assert source.fingerprint() == Opened(Config.model_validate(give(Mine("random")))).train.fingerprint()
    caplog.clear()
    _ = Opened(Config.model_validate(give(Mine()))).train
    assert not caplog.text


class Broken(Mine):
    def __getitem__(self, i: int) -> Any:
        if i == 3:
            raise OSError("the disk is gone")
        return super().__getitem__(i)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield pixels(0)


class Empty(Mine):
    def __len__(self) -> int:
        return 0


def test_what_cannot_be_used_is_named() -> None:
    source = Opened(Config.model_validate({**give(Broken("pillow")), "labels": True})).train
    assert source.labels.tolist() == [-1 if i == 3 else i % 3 for i in range(COUNT)]
    with pytest.raises(BadSample, match=r"Broken/train\[3\]: cannot be read: OSError: the disk is gone"):
        source.image(3)
    with pytest.raises(BadSample, match=r"a NoneType, expected a path, a Pillow image, an array, a tensor"):
        Opened(Config.model_validate(give(Mine("none")))).train.image(0)
    for dataset, said in ((Stream(), "expected items by number"), (Empty(), "has no length, or is empty")):
        with pytest.raises(UserError, match=said):
            give(dataset)
    with pytest.raises(UserError, match="is not in this process"):
        _ = Opened(Config(path="object:other.Set")).train
    for path, said in (("no_such_module:x", "No module named"), ("os:nothing", "has no attribute 'nothing'")):
        with pytest.raises(UserError, match=said):
            _ = Opened(Config(path=path)).train
    with pytest.raises(UserError, match="items by number"):
        unlabeled.pretrain(RECIPE, data=Stream())


def bytes_of(run: unlabeled.Run) -> list[bytes]:
    return [file.read_bytes() for file in sorted((run.folder / "checkpoints").rglob("*.safetensors"))]


@pytest.mark.parametrize("workers", [0, 2])
def test_runs_are_exact(tmp_path: Path, module: str, workers: int) -> None:
    changes = {"run.workers": workers, "run.keep_last": 1}
    run = unlabeled.pretrain(RECIPE, data=Mine(), output=tmp_path / "a", overrides=changes)
    told = {"name": "dataset", "path": f"{module}:build", "train": {"count": COUNT}}
    named = unlabeled.pretrain(RECIPE, data=told, output=tmp_path / "b", overrides=changes)
    short = {**changes, "train.epochs": 1, "optim.schedule": {"name": "constant"}}
    assert bytes_of(run)[:1] == bytes_of(named)[:1] != []
    first = unlabeled.pretrain(RECIPE, data=Mine(), output=tmp_path / "c", overrides=short)
    longer = unlabeled.pretrain(RECIPE, data=Mine(), output=tmp_path / "c", overrides=short, extend=1)
    whole = unlabeled.pretrain(RECIPE, data=Mine(), output=tmp_path / "d", overrides={**short, "train.epochs": 2})
    assert first.folder == longer.folder and bytes_of(longer)[-2:] == bytes_of(whole)[-2:]


def test_bad_items_are_skipped_and_counted(tmp_path: Path) -> None:
    run = unlabeled.pretrain(
        RECIPE, data=Broken(), output=tmp_path / "run", overrides={"data.max_bad_fraction": 0.2, "train.epochs": 1}
    )
    assert "Broken/train[3]" in (run.folder / "bad_samples.jsonl").read_text(encoding="utf-8")


def test_a_model_embeds_it(tmp_path: Path) -> None:
    run = unlabeled.pretrain(RECIPE, data=Mine(), output=tmp_path / "run", overrides={"train.epochs": 1})
    model = run.load(device="cpu")
    found = model.embed(Broken())
    assert torch.equal(found.features, model.embed([pixels(i) for i in range(COUNT) if i != 3]).features)
    assert [key for key, _ in found.bad] == ["Broken[3]"]
