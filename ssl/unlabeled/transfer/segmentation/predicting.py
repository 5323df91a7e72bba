"""The class of every pixel of every image of a source, beside the masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from copy import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.source import Source
from unlabeled.data.view.placed import Seen, whole
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import BadSample, Stopped, UserError
from unlabeled.evaluate.segmentation_heads import counted
from unlabeled.processes import gather_objects, raise_together
from unlabeled.progress import track
from unlabeled.signals import stop
from unlabeled.transfer.predict import Predict

BATCH = 16
Scores = Callable[[Tensor], Tensor]  # from normalised images [B, C, H, W] to class scores [B, classes, H, W]
log = logging.getLogger(__name__)


class Image(NamedTuple):
    """An image as a network sees it, with its mask; or the reason why it cannot be used."""

    number: int
    seen: Seen | None
    mask: Tensor | None
    bad: str = ""


class Judged(NamedTuple):
    """What was counted in an image.

    Attributes:
        number: of the image.
        counts: [3, classes] int64: pixels of a class that are classified as it, those of it, those classified as it;
            without unlabelled ones.
        shown: [H, W] int16, the class of every pixel, where it is asked for.
    """

    number: int
    counts: Tensor
    shown: Tensor | None


class WholeImages(Dataset[Image]):
    """Every image of a source with masks, as large as fits into a shape."""

    def __init__(self, source: Source, shape: tuple[int, int], interpolation: Interpolation) -> None:
        self.source, self.shape, self.interpolation = source, shape, interpolation

    def __getitems__(self, numbers: Sequence[int]) -> list[Image]:
        """The images of a batch, those that lie far away read side by side."""
        near = copy(self)
        near.source = self.source.ahead(list(numbers))
        return [near[number] for number in numbers]

    def __getitem__(self, number: int) -> Image:
        try:
            image = self.source.image(number)
        except BadSample as error:
            return Image(number, None, None, f"{error.key}: {error.reason}")
        mask = self.source.pixel_labels(number, image.shape[-2], image.shape[-1])
        return Image(number, whole(image, self.shape, self.interpolation), mask)


def judge(scores: Scores, source: Source, how: Predict, shown: Collection[int] = ()) -> tuple[Tensor, list[Judged]]:
    """Classify the pixels of the images of a source, at the full size of their masks; the result is the same on every
    process. Each process takes its own share; images that cannot be used are logged, and left out.

    Args:
        scores: of the network.
        source: of images with masks.
        how: images are read.
        shown: numbers of the images whose classes are kept.

    Returns:
        The confusion matrix of all, see `counted`, and what was counted in each image, in their order.

    Raises:
        UserError: no image can be used, or a mask cannot.
        Interrupted: a worker is lost, or gives nothing in time.
    """
    device, rank, world = how.accelerator.device, how.accelerator.process_index, how.accelerator.num_processes
    share, classes = range(rank, len(source), world), len(source.classes)
    batches = [list(share[i : i + BATCH]) for i in range(0, len(share), BATCH)]
    images = WholeImages(source, how.shape, how.interpolation)
    loader = make_loader(images, batches, workers=how.workers, device=device, timeout=how.timeout, collate=list)
    normalize = Normalize(how.mean, how.std, device)
    total, judged, bad = torch.zeros(classes, classes, dtype=torch.int64), list[Judged](), list[str]()
    error: BaseException | None = None
    try:
        with stop.alone(), Batches(loader) as made:
            for batch in track(made, "classifying pixels", len(share), len):
                good = [image for image in batch if image.seen is not None]
                bad += [image.bad for image in batch if image.seen is None]
                if good:
                    pixels = torch.stack([image.seen.pixels for image in good])
                    found = scores(normalize(pixels.to(device, non_blocking=True)))
                    for image, own in zip(good, found, strict=True):
                        judged.append(_judged(image, own, total, shown))
    except (Exception, Stopped) as caught:  # the other processes wait to hear of any error
        error = caught
    raise_together(error)
    return _together(gather_objects((total, judged, bad)) if world > 1 else [(total, judged, bad)], len(source))


def _judged(image: Image, scores: Tensor, total: Tensor, shown: Collection[int]) -> Judged:
    """Count in an image, and add to the matrix of all."""
    assert image.seen is not None and image.mask is not None
    found = classified(scores, image.seen)
    matrix = counted(image.mask, found, len(total))
    total += matrix
    counts = torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
    return Judged(image.number, counts, found.short() if image.number in shown else None)


def classified(scores: Tensor, seen: Seen) -> Tensor:
    """The class of every pixel [H, W] int64 of an image, on the CPU, by scores [classes, height, width] of its view,
    brought to the image's size bilinearly."""
    height, width = seen.resized
    whole_size = F.interpolate(scores[None, :, :height, :width], seen.size, mode="bilinear", align_corners=False)
    return whole_size[0].argmax(0).cpu()


def _together(shares: Sequence[tuple[Tensor, list[Judged], list[str]]], images: int) -> tuple[Tensor, list[Judged]]:
    unusable = [one for _, _, some in shares for one in some]
    if unusable:
        log.warning("the score leaves out %d of %d pictures, the first: %s", len(unusable), images, unusable[0])
    if len(unusable) == images:
        raise UserError(f"none of the {images} pictures of data.val can be used, the first: {unusable[0]}")
    total = torch.stack([matrix for matrix, _, _ in shares]).sum(0)
    return total, sorted((one for _, some, _ in shares for one in some), key=lambda one: one.number)
