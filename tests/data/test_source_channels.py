"""Every kind of source gives as many channels as its mean has values, or says what it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded import encode
from PIL import Image
from pydantic import ValidationError

from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Position
from unlabeled.data.opened import Opened
from unlabeled.data.sources.arrays import Config as Arrays
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.sources.table import Config as Table
from unlabeled.data.sources.torchvision import Config as TorchVision
from unlabeled.data.view.views import View
from unlabeled.errors import BadSample, UserError

RGBA = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 4), dtype=np.uint8)


def normal(channels: int) -> dict[str, Any]:
    return {"mean": (0.5,) * channels, "std": (0.25,) * channels}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three RGBA pictures, a table of them, and the same as an array."""
    for number, pixels in enumerate(RGBA):
        (tmp_path / f"{number}.png").write_bytes(encode(Image.fromarray(pixels), "PNG"))
    (tmp_path / "t.csv").write_text("path\n0.png\n1.png\n2.png\n", encoding="utf-8")
    (tmp_path / "array").mkdir()
    np.save(tmp_path / "array" / "x.npy", RGBA)
    return tmp_path


def hugging_face(folder: Path, **how: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    from unlabeled.data.sources.huggingface import Config as HuggingFace

    cells = [{"bytes": (folder / f"{number}.png").read_bytes(), "path": None} for number in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(folder / "saved")
    return HuggingFace(path=str(folder / "saved"), **how)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, **how: Files(path=str(folder), **how),
        lambda folder, **how: Table(path=str(folder / "t.csv"), **how),
        hugging_face,
        lambda folder, **how: Mixture(sources=(Files(path=str(folder)),), **how),
    ],
    ids=["files", "table", "huggingface", "mixture"],
)
def test_encoded_pictures(make: Any, folder: Path) -> None:
    (folder / "array" / "x.npy").unlink()
    four, grey = Opened(make(folder, **normal(4))).train, Opened(make(folder, **normal(1))).train
    for i in range(3):
        assert four.image(i).permute(1, 2, 0).tolist() == RGBA[i].tolist()
        assert grey.image(i)[0].tolist() == np.asarray(Image.fromarray(RGBA[i]).convert("RGB").convert("L")).tolist()
    with pytest.raises(BadSample, match="4 bands, expected 5"):
        Opened(make(folder, **normal(5))).train.image(0)


def test_arrays(folder: Path) -> None:
    file = str(folder / "array" / "x.npy")
    assert Opened(Arrays(train=file, **normal(4))).train.image(1).permute(1, 2, 0).tolist() == RGBA[1].tolist()
    with pytest.raises(UserError, match=r"has 4 bands, expected 3: give data\.mean and data\.std as many values"):
        _ = Opened(Arrays(train=file)).train
    tall = np.array([[[[0.0, 2.0], [4.0, -1.0]]], [[[1.0, 1.0], [1.0, np.nan]]]], np.float32)
    np.save(file, tall)
    source = Opened(Arrays(train=file, layout="NCHW", value_range=(0, 4), **normal(1))).train
    assert source.image(0).tolist() == [[[0, 128], [255, 0]]]
    assert Opened(Arrays(train=file, layout="NCHW", **normal(1))).train.image(0).tolist() == [[[51, 153], [255, 0]]]
    with pytest.raises(BadSample, match=r"x.npy\[1\]: pixels that are NaN or infinite"):
        source.image(1)
    np.save(file, RGBA[..., :3])
    grey = Opened(Arrays(train=file, **normal(1))).train.image(2)
    assert grey[0].tolist() == np.asarray(Image.fromarray(RGBA[2, ..., :3]).convert("L")).tolist()


def test_torchvision(folder: Path) -> None:
    for number, pixels in enumerate(RGBA):
        (folder / "in" / "a").mkdir(parents=True, exist_ok=True)
        (folder / "in" / "a" / f"{number}.png").write_bytes(encode(Image.fromarray(pixels[..., :3]), "PNG"))

    def opened(channels: int) -> Any:
        return Opened(TorchVision(dataset="ImageFolder", root=str(folder / "in"), **normal(channels))).train

    assert opened(1).image(0)[0].tolist() == np.asarray(Image.fromarray(RGBA[0, ..., :3]).convert("L")).tolist()
    source = opened(4)
    assert source.fingerprint() != opened(3).fingerprint()
    with pytest.raises(UserError, match=r"3 pictures in a row cannot be used, the last: .*3 bands, expected 4"):
        ViewDataset(source, [View(size=8)], 8, 0)[Position(0, 0)]


def test_shapes_have_three() -> None:
    with pytest.raises(ValidationError, match="shapes are drawn in 3 channels, found a mean of 4 values"):
        Shapes(**normal(4))
    with pytest.raises(ValidationError, match="shapes are drawn in 3 channels, found a mean of 4 values"):
        Mixture(sources=(Shapes(),), **normal(4))


def test_a_range_of_values_belongs_to_a_part_of_a_mixture(folder: Path) -> None:
    np.save(folder / "array" / "x.npy", np.full((1, 2, 2, 4), 2000, np.uint16))
    part = Arrays(train=str(folder / "array" / "x.npy"), value_range=(0, 10_000))
    assert Opened(Mixture(sources=(part,), **normal(4))).train.image(0).unique().tolist() == [51]
