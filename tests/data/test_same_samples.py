"""Crops, flips, colours and masks of a sample: whoever makes it, wherever its picture lies."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.archive.prepare import prepare
from unlabeled.data.archive.storing import Settings
from unlabeled.data.batch.loader import ViewDataset, make_loader
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.opened import Opened
from unlabeled.data.source import SourceConfig
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.views import View
from unlabeled.sharing.shards import Sharing

COUNT, BATCH, STEPS, PATCH = 13, 4, 6, 4
VIEWS = (
    View(size=16, mask=RandomMask(name="random", ratio=0.5)),
    View(count=3, size=8, scale=(0.05, 0.3), jitter=(0.4, 0.4, 0.2, 0.1), blur=0.5, solarize=0.3),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in a folder and in a tar."""
    home = tmp_path_factory.mktemp("same")
    for number in range(COUNT):
        (home / "x" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(256, size=(40 + number, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / "x" / "ab"[number % 2] / f"{number:02d}.png")
    with tarfile.open(home / "x.tar", "w") as packed:
        packed.add(home / "x", "")
    return home


def samples(data: SourceConfig, workers: int = 0, world: int = 1) -> Iterator[RawBatch]:
    """Every global batch of a run of several epochs, put together from all ranks' shares."""
    dataset = ViewDataset(Opened(data).train, VIEWS, PATCH, seed=5)
    shares = []
    for rank in range(world):
        order = EpochSampler(COUNT, BATCH, STEPS, seed=5, rank=rank, world=world)
        loader = make_loader(dataset, order, workers=workers, device=torch.device("cpu"), timeout=60, collate=collate)
        shares.append(list(loader))
    yield from (batch for step in zip(*shares, strict=True) for batch in step)


def tensors(batches: Iterator[RawBatch]) -> list[Tensor]:
    """All there is in them: pixels, masks, colours, labels and numbers, a row per sample."""
    rows: dict[str, list[Tensor]] = {}
    for batch in batches:
        parts = {"labels": batch.labels, "index": batch.index}
        for number, crops in enumerate(batch.crops):
            parts[f"{number} pixels"] = crops.pixels
            if crops.mask is not None:
                parts[f"{number} hidden"] = crops.mask.hidden
            if crops.colours is not None:
                drawn = crops.colours._asdict()
                parts |= {f"{number} {name}": value for name, value in drawn.items() if isinstance(value, Tensor)}
        for name, part in parts.items():
            rows.setdefault(name, []).append(part)
    assert len(rows) > 8
    return [torch.cat(parts) for parts in rows.values()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def folder(home: Path) -> Files:
    return Files(path=str(home / "x"))


@pytest.fixture(scope="module")
def expected(home: Path) -> list[Tensor]:
    return tensors(samples(folder(home)))


@pytest.mark.parametrize(("workers", "world"), [(1, 1), (2, 1), (5, 1), (0, 2), (2, 2)])
def test_workers_and_processes(workers: int, world: int, home: Path, expected: list[Tensor]) -> None:
    assert equal(tensors(samples(folder(home), workers, world)), expected)


def test_a_tar(home: Path, expected: list[Tensor]) -> None:
    assert equal(tensors(samples(Files(path=str(home / "x.tar")))), expected)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_uneven_shards(world: int, home: Path, tmp_path: Path, expected: list[Tensor]) -> None:
    """Tars of 1, 9 and 3 pictures: every process has as many steps, and all of them see the batches of one."""
    members = sorted((home / "x").rglob("*.png"))
    for number, part in enumerate((members[:1], members[1:10], members[10:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as packed:
            for file in part:
                packed.add(file, str(file.relative_to(home / "x")))
    assert equal(tensors(samples(Files(path=str(tmp_path / "*.tar")), world=world)), expected)


def cache(home: Path, tmp_path: Path, short_side: int) -> Files:
    list(prepare(folder(home), tmp_path, Settings(short_side=short_side, shard=5), Sharing()))
    return folder(home).model_copy(update={"cache": str(tmp_path)})


def test_a_cache_of_what_is_small_already(home: Path, tmp_path: Path, expected: list[Tensor]) -> None:
    assert equal(tensors(samples(cache(home, tmp_path, 64))), expected)


def test_a_cache_that_makes_smaller_changes_pixels_only(home: Path, tmp_path: Path, expected: list[Tensor]) -> None:
    """Boxes are the same shares of the picture, so crops show the same, a little softer."""
    made = tensors(samples(cache(home, tmp_path, 32)))
    for small, whole in zip(made, expected, strict=True):
        if small.dtype == torch.uint8:
            difference = (small.float() - whole.float()).abs().mean()
            assert 0 < difference < (whole.float() - whole.float().roll(1, 0)).abs().mean() / 2
        else:
            assert torch.equal(small, whole)


def test_another_seed_is_another_sample(home: Path, expected: list[Tensor]) -> None:
    dataset = ViewDataset(Opened(folder(home)).train, VIEWS, PATCH, seed=6)
    batches = [collate([dataset[position] for position in rows]) for rows in EpochSampler(COUNT, BATCH, STEPS, seed=5)]
    assert not equal(tensors(iter(batches)), expected)
