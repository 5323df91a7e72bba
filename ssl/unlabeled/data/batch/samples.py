"""Samples as workers make them, and micro-batches as they leave the workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from unlabeled.data.label.boxes import BatchBoxes, Boxes
from unlabeled.data.view.augment import Erased
from unlabeled.data.view.cutting import pack
from unlabeled.data.view.mixing import stack
from unlabeled.data.view.photometric import Photometric
from unlabeled.data.view.views import Crops
from unlabeled.nn.mixing import Mix
from unlabeled.nn.patches import PatchMask


class Sample(NamedTuple):
    """One image's crops, and the bad images that were stepped over to get them: (key, reason)."""

    crops: list[Crops]
    label: int
    index: int  # type: ignore[assignment]  # as every data set calls it, though tuples have a method of that name
    bad: list[tuple[str, str]]
    mix: Any = None
    image: Tensor | None = None  # whole, where crops are cut on the device
    truth: int | None = None  # see `Source.truth`
    boxes: Boxes | None = None  # of the first view's crop, where the source has boxes
    pixel_labels: Tensor | None = None  # [H, W] int16, classes of that crop, where the source has masks
    moves: Tensor | None = None  # [views, 3, 3], see `Batch.moves`


class RawBatch(NamedTuple):
    """A collated micro-batch as it leaves the worker: uint8 pixels [B, count, C, H, W], masks and colours likewise.

    Where crops are cut on the device, `images` are all images in one flat buffer, and `pixels` rows [B, count, ROW].
    """

    crops: list[Crops]
    labels: Tensor
    index: Tensor  # type: ignore[assignment]
    bad: list[tuple[str, str]]
    mix: Mix | None = None
    images: Tensor | None = None
    truth: Tensor | None = None
    boxes: BatchBoxes | None = None
    pixel_labels: Tensor | None = None  # [B, H, W] int16
    moves: Tensor | None = None


def collate(samples: Sequence[Sample]) -> RawBatch:
    """Stack samples into one micro-batch."""
    crops = [_stack_crops(column) for column in zip(*(sample.crops for sample in samples), strict=True)]
    labels = torch.tensor([sample.label for sample in samples])
    index = torch.tensor([sample.index for sample in samples])
    bad = [bad for sample in samples for bad in sample.bad]
    images = None
    if whole := [sample.image for sample in samples if sample.image is not None]:
        images, starts = pack(whole)
        for crop in crops:
            crop.pixels[..., 0] += starts[:, None]
    truth = None
    if any(sample.truth is not None for sample in samples):
        truth = torch.tensor([-1 if sample.truth is None else sample.truth for sample in samples])
    boxes = [sample.boxes for sample in samples if sample.boxes is not None]
    mix = stack([sample.mix for sample in samples])
    classes = _together([sample.pixel_labels for sample in samples])
    moves = _together([sample.moves for sample in samples])
    there = BatchBoxes.of(boxes) if boxes else None
    return RawBatch(crops, labels, index, bad, mix, images, truth, there, classes, moves)


def _together(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there) if there else None


def _stack_crops(crops: Sequence[Crops]) -> Crops:
    masks = [crop.mask for crop in crops if crop.mask is not None]
    colours = [crop.colours for crop in crops if crop.colours is not None]
    erased = [crop.erased for crop in crops if crop.erased is not None]
    coloured = Photometric.stack(colours) if colours else None
    return Crops(
        default_collate([crop.pixels for crop in crops]),  # in a worker straight into memory that is shared
        PatchMask.stack(masks) if masks else None,
        coloured,
        Erased.stack(erased) if erased else None,
        None if coloured is None else coloured.blurred(),  # here, so that they are pinned with the rest
        crops[0].how,
    )
