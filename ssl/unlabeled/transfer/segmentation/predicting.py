"""The class of every pixel of every image of a source, counted beside its mask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.data.source import Source
from unlabeled.data.view.placed import Seen
from unlabeled.evaluate.segmentation_heads import counted
from unlabeled.transfer.dense.judging import Image, WholeImages, judged
from unlabeled.transfer.predict import Predict

Scores = Callable[[Tensor], Tensor]  # from normalised images [B, C, H, W] to class scores [B, classes, H, W]


class Judged(NamedTuple):
    """What was counted in an image.

    Attributes:
        number: of the image.
        counts: [3, classes] int64, see `counts_of`.
        shown: [H, W] int16, the class of every pixel, where it is asked for.
    """

    number: int
    counts: Tensor
    shown: Tensor | None = None


class MaskedImages(WholeImages):
    """Every image of a source with its mask."""

    def truth(self, number: int, height: int, width: int) -> Tensor:
        return self.source.pixel_labels(number, height, width)


def judge(scores: Scores, source: Source, how: Predict, shown: Collection[int] = ()) -> list[Judged]:
    """Classify the pixels of the images of a source at the full size of their masks, see `judged`; the classes of the
    images of the numbers `shown` are kept."""
    classes = len(source.classes)

    def answer(pixels: Tensor, images: Sequence[Image]) -> list[Judged]:
        return [_judged(image, own, classes, shown) for image, own in zip(images, scores(pixels), strict=True)]

    return judged(answer, MaskedImages(source, how.shape, how.interpolation), how, "classifying pixels")


def _judged(image: Image, scores: Tensor, classes: int, shown: Collection[int]) -> Judged:
    assert image.seen is not None
    found = classified(scores, image.seen)
    counts = counts_of(image.truth, found, classes)
    return Judged(image.number, counts, found.short() if image.number in shown else None)


def counts_of(mask: Tensor, found: Tensor, classes: int) -> Tensor:
    """The labelled pixels of a mask [H, W] that are of a class and found [H, W] as it, those that are of it, and those
    that are found as it: [3, classes]."""
    matrix = counted(mask, found, classes)
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def classified(scores: Tensor, seen: Seen) -> Tensor:
    """The class of every pixel [H, W] int64 of an image, on the CPU, by scores [classes, height, width] of its view,
    brought to the image's size bilinearly."""
    height, width = seen.resized
    whole_size = F.interpolate(scores[None, :, :height, :width], seen.size, mode="bilinear", align_corners=False)
    return whole_size[0].argmax(0).cpu()
