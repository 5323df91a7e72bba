"""Boxes in every image of a source, in pixels of the images, beside those that are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.data.batch.loader import make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.label.boxes import Boxes
from unlabeled.data.source import Source
from unlabeled.data.view.placed import Seen, whole
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import BadSample, Stopped, UserError
from unlabeled.processes import gather_objects, raise_together
from unlabeled.progress import track
from unlabeled.signals import stop
from unlabeled.transfer.detector import Detected

BATCH = 16
Find = Callable[[Tensor], list[Detected]]
log = logging.getLogger(__name__)


class Image(NamedTuple):
    """An image as a detector sees it, with its boxes; or the reason why it cannot be used."""

    number: int
    seen: Seen | None
    boxes: Boxes | None
    bad: str = ""


class Judged(NamedTuple):
    """What was found in an image beside what is there."""

    number: int
    truth: Boxes
    found: Detected


class WholeImages(Dataset[Image]):
    """Every image of a source, as large as fits into a shape."""

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
        boxes = self.source.boxes(number, image.shape[-2], image.shape[-1])
        return Image(number, whole(image, self.shape, self.interpolation), boxes)


def judge(
    find: Find,
    source: Source,
    shape: tuple[int, int],
    interpolation: Interpolation,
    *,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
    workers: int = 0,
    timeout: float = 600.0,
    rank: int = 0,
    world: int = 1,
) -> list[Judged]:
    """Find boxes in the images of a source, in its order; the result is the same on every process. Each process takes
    its own share; images that cannot be used are logged, and left out.

    Args:
        find: from normalised images [B, C, H, W] on the device to boxes.
        source: of images with boxes.
        shape: (height, width) that images are fitted into, pixels.
        interpolation: how they are resized.
        normalize: pixels to the input of `find`.
        device, workers, timeout: of the loader.
        rank, world: this process and the number of processes.

    Raises:
        UserError: no image can be used.
        Interrupted: a worker is lost, or gives nothing in time.
    """
    share = range(rank, len(source), world)
    batches = [list(share[i : i + BATCH]) for i in range(0, len(share), BATCH)]
    images = WholeImages(source, shape, interpolation)
    loader = make_loader(images, batches, workers=workers, device=device, timeout=timeout, collate=list)
    judged: list[Judged] = []
    bad: list[str] = []
    error: BaseException | None = None
    try:
        with stop.alone(), Batches(loader) as made:
            for batch in track(made, "finding boxes", len(share), len):
                good = [image for image in batch if image.seen is not None]
                bad += [image.bad for image in batch if image.seen is None]
                if good:
                    pixels = torch.stack([image.seen.pixels for image in good])
                    judged += map(_judged, good, find(normalize(pixels.to(device, non_blocking=True))))
    except (Exception, Stopped) as caught:  # the other processes wait to hear of any error
        error = caught
    raise_together(error)
    shares = gather_objects((judged, bad)) if world > 1 else [(judged, bad)]
    unusable = [one for _, some in shares for one in some]
    if unusable:
        log.warning("the score leaves out %d of %d pictures, the first: %s", len(unusable), len(source), unusable[0])
    if len(unusable) == len(source):
        raise UserError(f"none of the {len(source)} pictures of data.val can be used. Mend them: {unusable[0]}")
    return sorted((one for some, _ in shares for one in some), key=lambda one: one.number)


def _judged(image: Image, found: Detected) -> Judged:
    assert image.seen is not None and image.boxes is not None
    boxes, scores, classes = (tensor.cpu() for tensor in found)
    return Judged(image.number, image.boxes, Detected(image.seen.back(boxes.float()), scores.float(), classes))
