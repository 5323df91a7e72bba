"""A micro-batch on the device, as methods receive it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from unlabeled.data.label.boxes import BatchBoxes
from unlabeled.nn.mixing import Mix
from unlabeled.nn.patches import PatchMask


class ViewBatch(NamedTuple):
    """The crops of one `View`, for every image of the batch."""

    pixels: Tensor  # [count, B, C, H, W], normalised, on the device
    mask: PatchMask | None  # a PatchMask with leading axes [count, B], or None
    # number of masked patches in all crops as a Python int, so that shapes need no device sync; None if unknown
    hidden: int | None = None

    def flat(self) -> tuple[Tensor, PatchMask | None]:
        """Pixels [count * B, C, H, W] and mask, view-major."""
        return self.pixels.flatten(0, 1), None if self.mask is None else self.mask.flat()


class Batch(NamedTuple):
    """One micro-batch of one process."""

    views: list[ViewBatch]  # in the order that the method's Config lists them
    labels: Tensor  # [B] int64, -1 where unknown
    # [B] int64, numbers of the images in their source
    index: Tensor  # type: ignore[assignment]  # as every data set calls it, though tuples have a method of it
    mix: Mix | None = None  # how images are mixed with their neighbours (mixup, CutMix); None = not at all
    truth: Tensor | None = None  # [B] int64, labels for measures alone, see `Source.truth`; None = there are none
    boxes: BatchBoxes | None = None  # of the first view's crops, in its pixels; None = the source has none
    # [B, H, W] int16, classes of the pixels of the first view's crops, -1 where unknown; None = the source has no masks
    pixel_labels: Tensor | None = None
    # [B, views, 3, 3] matrices of points (x, y, 1), from an image to its crops, pixels; None = nobody asks
    moves: Tensor | None = None
