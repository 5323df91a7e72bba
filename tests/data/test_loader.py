"""From a source to batches: what a sample is depends on nothing but (seed, epoch, index)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from unlabeled.data.batch.bad import BadSamples
from unlabeled.data.batch.loader import Normalize, ViewDataset, make_loader, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.source import Source
from unlabeled.data.view.views import View
from unlabeled.errors import BadSample, UserError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = (View(size=32, mask=RandomMask(ratio=0.5)), View(size=(16, 24), count=2))
POSITIONS = [Position(epoch, index) for epoch in (0, 3) for index in (4, 0, 9, 2)]


class Noise(Source):
    """A source of noise, some of it bad."""

    classes: tuple[str, ...] = ("a", "b")

    def __init__(self, n: int = 10, bad: Iterable[int] = ()) -> None:
        self.labels, self.bad = np.arange(n) % 2, set(bad)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Tensor:
        if i in self.bad:
            raise BadSample(self.key(i), "broken")
        rng = torch.Generator().manual_seed(i)
        return torch.randint(0, 256, (3, 40 + i, 50), generator=rng, dtype=torch.uint8)

    def key(self, i: int) -> str:
        return f"noise/{i}"

    def fingerprint(self) -> str:
        return "noise"


def load(batches: Sequence[Any], workers: int = 0, source: Noise | None = None, seed: int = 5) -> list[RawBatch]:
    dataset = ViewDataset(source or Noise(), VIEWS, patch=8, seed=seed)
    return list(make_loader(dataset, batches, workers=workers, device=CPU, timeout=60, collate=collate))


def by_sample(batches: list[RawBatch]) -> list[list[Tensor]]:
    """For each sample in order, everything that was drawn for it."""
    samples = []
    for batch in batches:
        masks = [column for crops in batch.crops if crops.mask for column in crops.mask if column is not None]
        columns = [*(crops.pixels for crops in batch.crops), *masks, batch.labels, batch.index]
        samples += [list(row) for row in zip(*columns, strict=True)]
    return samples


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(torch.equal(x, y) for row in zip(a, b, strict=True) for x, y in zip(*row, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_sample_is_the_same_in_any_worker_and_batch(workers: int, size: int) -> None:
    expected = by_sample(load([[position] for position in POSITIONS]))
    batches = [POSITIONS[i : i + size] for i in range(0, len(POSITIONS), size)]
    assert same(by_sample(load(batches, workers)), expected)


def test_epochs_and_seeds_draw_afresh() -> None:
    samples = [load([[Position(epoch, 4)]], seed=seed) for epoch, seed in [(0, 5), (1, 5), (0, 6)]]
    crops: list[Any] = [batches[0].crops[0] for batches in samples]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.equal(crops[a].pixels, crops[b].pixels)
        assert not torch.equal(crops[a].mask.hidden, crops[b].mask.hidden)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_torchs_random_state_alone(workers: int) -> None:
    before = torch.get_rng_state()
    load([POSITIONS], workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_gives_way_to_the_next_good_one(workers: int) -> None:
    (batch,) = load([[Position(0, 8), Position(0, 1), Position(0, 9)]], workers, Noise(bad=[8, 9, 0]))
    assert batch.index.tolist() == [1, 1, 1] and batch.labels.tolist() == [1, 1, 1]
    assert batch.bad == [(f"noise/{i}", "broken") for i in (8, 9, 0, 9, 0)]
    # its crops are those that were due for the position, not those of the picture that steps in
    crops: Any = batch.crops[0]
    assert not torch.equal(crops.mask.hidden[0], crops.mask.hidden[1])


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (100, "64 pictures in a row cannot be used, the last: noise/13: broken"),
        (3, "3 pictures in a row cannot be used, the last: noise/1: broken"),
    ],
)
def test_too_many_bad_pictures_in_a_row_are_an_error(n: int, text: str) -> None:
    start = 50 if n == 100 else 2
    with pytest.raises(UserError, match=text):
        load([[Position(0, start)]], source=Noise(n, bad=range(n)))


def test_normalize_is_torchvisions() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(3, 16, 16)
    expected = TF.normalize(TF.to_dtype(pixels, torch.float32, scale=True), list(MEAN), list(STD))
    normalize = Normalize(MEAN, STD, CPU)
    found = normalize(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(normalize.undo(found), pixels)
    assert normalize.undo(torch.tensor([-9.0, 9.0]).expand(3, 1, 2)).unique().tolist() == [0, 255]


def test_batches_on_the_device_are_view_major() -> None:
    (raw,) = load([POSITIONS])
    normalize = Normalize(MEAN, STD, CPU)
    views, labels, index, *_ = to_device(raw, CPU, normalize)
    assert [tuple(view.pixels.shape) for view in views] == [(1, 8, 3, 32, 32), (2, 8, 3, 16, 24)]
    assert index.tolist() == [p.index for p in POSITIONS] and labels.tolist() == [p.index % 2 for p in POSITIONS]
    for view, crops in zip(views, raw.crops, strict=True):
        for count in range(view.pixels.shape[0]):
            assert torch.equal(view.pixels[count], normalize(crops.pixels[:, count]))
    assert views[1].mask is None
    masks: list[Any] = [views[0].mask, raw.crops[0].mask]
    assert masks[0].targets is None
    for column, stacked in zip(masks[0][:3], masks[1][:3], strict=True):
        assert column.shape == (1, 8, *stacked.shape[2:]) and torch.equal(column[0], stacked[:, 0])


def test_masks_of_several_crops_are_view_major() -> None:
    dataset = ViewDataset(Noise(), [View(size=32, count=3, mask=RandomMask())], patch=8, seed=0)
    raw = collate([dataset[position] for position in POSITIONS])
    crops: Any = raw.crops[0]
    pixels, mask = to_device(raw, CPU, Normalize(MEAN, STD, CPU)).views[0].flat()
    assert pixels.shape == (24, 3, 32, 32) and mask is not None
    keep, drop = mask.indices()
    assert (mask.hidden.shape, keep.shape, drop.shape) == ((24, 16), (24, 4), (24, 12))
    assert torch.equal(mask.hidden[8], crops.mask.hidden[0, 1])


# bad samples


def test_bad_samples_are_written_once_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "bad_samples.jsonl"
    bad = BadSamples(file, n=10, limit=0.2)
    assert [
        bad.add("a", "broken"),
        bad.add("a", "again"),
        bad.add("ü\n", "odd"),
        bad.add("c", "r", False),
    ] == [
        True,
        False,
        True,
        True,
    ]
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [
        {"key": "a", "reason": "broken"},
        {"key": "ü\n", "reason": "odd"},
    ]
    again = BadSamples(file, n=10, limit=0.2)
    assert again.keys == {"a", "ü\n"} and not again.add("a", "broken")


def test_a_line_cut_short_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "bad_samples.jsonl"
    file.write_text('{"key": "a", "reason": "broken"}\n{"key": "b", "rea', encoding="utf-8")
    bad = BadSamples(file, n=10, limit=0.2)
    assert bad.keys == {"a"} and bad.add("b", "broken")


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    file = tmp_path / "bad_samples.jsonl"
    bad = BadSamples(file, n=10, limit=0.2)
    for key in "ab":
        bad.add(key, "broken")
    bad.check()
    bad.add("c", "broken")
    with pytest.raises(UserError, match=r"3 of 10 pictures cannot be used, more than .*max_bad_fraction 0.2") as error:
        bad.check()
    assert str(file) in str(error.value)
