"""Boxes in every image of a source, in pixels of the images, beside those that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from unlabeled.data.label.boxes import Boxes
from unlabeled.data.source import Source
from unlabeled.transfer.dense.judging import Image, WholeImages, judged
from unlabeled.transfer.detector import Detected
from unlabeled.transfer.predict import Predict

Find = Callable[[Tensor], list[Detected]]


class Judged(NamedTuple):
    """What was found in an image beside what is there."""

    number: int
    truth: Boxes
    found: Detected


class BoxedImages(WholeImages):
    """Every image of a source with its boxes."""

    def truth(self, number: int, height: int, width: int) -> Boxes:
        return self.source.boxes(number, height, width)


def judge(find: Find, source: Source, how: Predict) -> list[Judged]:
    """Find boxes in the images of a source, see `judged`; `find` takes normalised images [B, C, H, W] to boxes."""

    def answer(pixels: Tensor, images: Sequence[Image]) -> list[Judged]:
        return [_judged(image, found) for image, found in zip(images, find(pixels), strict=True)]

    return judged(answer, BoxedImages(source, how.shape, how.interpolation), how, "finding boxes")


def _judged(image: Image, found: Detected) -> Judged:
    assert image.seen is not None
    boxes, scores, classes = (tensor.cpu() for tensor in found)
    return Judged(image.number, image.truth, Detected(image.seen.back(boxes.float()), scores.float(), classes))
