"""Crops cut on the device: those of the worker, whatever the pictures' sizes, channels and bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.data.batch.loader import Normalize, ViewDataset, make_loader, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view import cutting
from unlabeled.data.view.box import Box
from unlabeled.data.view.cutting import Cut, cut, pack, row
from unlabeled.data.view.views import View
from unlabeled.stages.pretrain import Pretrain

CPU = torch.device("cpu")
POSITIONS = [Position(3, i) for i in range(6)]
VIEWS = (
    View(size=16, count=2, mask=RandomMask(ratio=0.5), jitter=(0.4, 0.4, 0.0, 0.0), blur=0.5, solarize=0.3),
    View(size=(24, 40), scale=(0.05, 0.3), erase=0.5),
)


def picture(channels: int, height: int, width: int, kind: str) -> Tensor:
    rng = np.random.default_rng((channels, height, width))
    if kind == "noise":
        pixels = rng.integers(0, 256, (channels, height, width))
    elif kind == "black and white":
        pixels = 255 * rng.integers(0, 2, (channels, height, width))
    else:
        pixels = np.sin(np.arange(height) / 5)[:, None] * np.sin(np.arange(width) / 7) * 127 + 127
        pixels = np.broadcast_to(pixels, (channels, height, width))
    return torch.from_numpy(pixels.astype(np.uint8))


def both(view: View, pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The crops [N, C, h, w] of the worker and of the device."""
    rng = np.random.default_rng(0)
    drawn = [(image, view.draw(rng, *image.shape[-2:])) for image in pictures for _ in range(3)]
    buffer, starts = pack(pictures)
    rows = torch.stack([row(image.shape, *crop) for image, crop in drawn])
    rows[:, 0] += starts.repeat_interleave(3)
    found = cut(buffer, rows, rows[:, 5:7], Cut(view.shape, view.interpolation), len(pictures[0]))
    return torch.stack([view.apply(image, crop) for image, crop in drawn]), found


@pytest.mark.parametrize("kind", ["noise", "black and white", "smooth"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3, 4, 6, 16])
def test_crops_are_those_of_the_worker(channels: int, interpolation: Any, kind: str) -> None:
    pictures = [picture(channels, height, width, kind) for height, width in ((20, 90), (64, 33), (7, 11), (110, 80))]
    for size in (16, (24, 40), 96):
        worker, device = both(View(size=size, scale=(0.05, 1.0), interpolation=interpolation), pictures)
        off = (worker.int() - device.int()).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 1e-3, (size, off.max(), (off > 0).float().mean())
        assert device.float().std() > 10


def test_a_box_of_the_crops_size_is_copied_and_one_of_a_pixel_is_flat() -> None:
    image = picture(3, 20, 30, "noise")
    buffer, _ = pack([image])
    rows = torch.stack([row(image.shape, Box(2, 5, 8, 8), True), row(image.shape, Box(19, 29, 1, 1), False)])
    same, flat = cut(buffer, rows, rows[:, 5:7], Cut((8, 8), "bicubic"), 3)
    assert torch.equal(same, image[:, 2:10, 5:13].flip(-1))
    assert torch.equal(flat, image[:, 19:, 29:].expand(3, 8, 8))


def test_parts_of_a_batch_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(3, 20 + 7 * i, 90 - 9 * i, "noise") for i in range(6)]
    _, whole = both(VIEWS[1], pictures)
    monkeypatch.setattr(cutting, "AT_ONCE", 4000)
    assert torch.equal(both(VIEWS[1], pictures)[1], whole)
    sizes = torch.tensor([[2, 3], [4, 1], [9, 9], [1, 1]])
    monkeypatch.setattr(cutting, "AT_ONCE", 30)
    assert list(cutting._several(sizes, 1)) == [(2, (4, 3)), (3, (9, 9)), (4, (1, 1))]


def test_nothing_on_the_device_is_waited_for() -> None:
    pictures = [picture(3, 20 + 7 * i, 90 - 9 * i, "noise") for i in range(6)]
    buffer, _ = pack(pictures)
    rows = torch.stack([row(image.shape, Box(0, 0, 9, 9), False) for image in pictures]).view(2, 3, -1)
    crops = cut(buffer.to("meta"), rows.to("meta"), rows[..., 5:7], Cut((8, 8), "bicubic"), 3)
    assert crops.shape == (2, 3, 3, 8, 8) and crops.device.type == "meta"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of six bands of 16 bits, each of another size."""
    folder = tmp_path_factory.mktemp("bands")
    for number in range(6):
        shape = (40 + 5 * number, 70 - 6 * number, 6)
        np.save(folder / f"{number}.npy", np.random.default_rng(number).integers(0, 9000, shape, dtype=np.uint16))
    return folder


def batches(folder: Path, uncut: bool, workers: int = 0, size: int = 6) -> list[RawBatch]:
    data = Files(path=str(folder), mean=(0.5,) * 6, std=(0.2,) * 6, value_range=(0, 9000))
    dataset = ViewDataset(Opened(data).train, VIEWS, 8, seed=4, uncut=uncut)
    split = [POSITIONS[i : i + size] for i in range(0, 6, size)]
    return list(make_loader(dataset, split, workers=workers, device=CPU, timeout=60, collate=collate))


def test_a_batch_is_the_workers(folder: Path) -> None:
    normalize = Normalize((0.5,) * 6, (0.2,) * 6, CPU)
    [near], [far] = batches(folder, False), batches(folder, True)
    worker, device = (to_device(raw, CPU, normalize) for raw in (near, far))
    for ours, theirs in zip(device.views, worker.views, strict=True):
        assert ours.pixels.shape == theirs.pixels.shape and ours.hidden == theirs.hidden
        assert torch.allclose(ours.pixels, theirs.pixels, atol=4 / 255 / 0.2)
        assert (ours.pixels != theirs.pixels).float().mean() < 1e-3
    for one, other in zip(far.crops, near.crops, strict=True):
        assert (one.how is None, other.how is None) == (False, True)
        for name in ("mask", "colours", "erased"):
            pairs = zip(getattr(one, name) or (), getattr(other, name) or (), strict=True)
            assert all(torch.equal(*pair) if isinstance(pair[0], Tensor) else pair[0] == pair[1] for pair in pairs)
    assert far.images is not None and far.images.numel() == sum(6 * (40 + 5 * i) * (70 - 6 * i) for i in range(6))


def test_workers_and_batches_do_not_matter(folder: Path) -> None:
    normalize = Normalize((0.5,) * 6, (0.2,) * 6, CPU)
    [whole] = (to_device(raw, CPU, normalize) for raw in batches(folder, True))
    parts = [to_device(raw, CPU, normalize) for raw in batches(folder, True, workers=1, size=2)]
    for number, view in enumerate(whole.views):
        assert torch.equal(view.pixels, torch.cat([part.views[number].pixels for part in parts], 1))


def test_what_a_view_cannot_do_there_is_said() -> None:
    overrides = ["run.views=device", "method.view.rand_augment=rand-m9-mstd0.5-inc1"]
    with pytest.raises(ValueError, match=r"run\.views=device cannot do what method\.view\.rand_augment"):
        Pretrain().load("recipes/demo/mae_shapes.yaml", overrides)
