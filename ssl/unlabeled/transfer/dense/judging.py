"""What a network says of every image of a source, each seen as a whole: read by workers, shared out to processes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.source import Source
from unlabeled.data.view.placed import Seen, whole
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import BadSample, Stopped, UserError
from unlabeled.processes import gather_objects, raise_together
from unlabeled.progress import track
from unlabeled.signals import stop
from unlabeled.transfer.predict import Predict

BATCH = 16
log = logging.getLogger(__name__)


class Image(NamedTuple):
    """An image as a network sees it, with its boxes or its mask; or the reason why it cannot be used."""

    number: int
    seen: Seen | None
    truth: Any
    bad: str = ""


class Numbered(Protocol):
    """What was found in an image, by its number."""

    @property
    def number(self) -> int: ...


Found = TypeVar("Found", bound=Numbered)


class WholeImages(Dataset[Image], ABC):
    """Every image of a source, as large as fits into a shape."""

    def __init__(self, source: Source, shape: tuple[int, int], interpolation: Interpolation) -> None:
        self.source, self.shape, self.interpolation = source, shape, interpolation

    @abstractmethod
    def truth(self, number: int, height: int, width: int) -> Any:
        """What is known of an image of so many pixels. Raises UserError."""

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
        truth = self.truth(number, image.shape[-2], image.shape[-1])
        return Image(number, whole(image, self.shape, self.interpolation), truth)


def judged(
    answer: Callable[[Tensor, Sequence[Image]], list[Found]], images: WholeImages, how: Predict, what: str
) -> list[Found]:
    """What is found in all images, in their order; the result is the same on every process. Each process takes its own
    share; images that cannot be used are logged, and left out.

    Args:
        answer: from normalised images [B, C, H, W] on the device, and what they are, to what is found.
        images: of the source.
        how: they are read.
        what: is done, for people.

    Raises:
        UserError: no image can be used.
        Interrupted: a worker is lost, or gives nothing in time.
    """
    device, rank, world = how.accelerator.device, how.accelerator.process_index, how.accelerator.num_processes
    share = range(rank, len(images.source), world)
    batches = [list(share[i : i + BATCH]) for i in range(0, len(share), BATCH)]
    loader = make_loader(images, batches, workers=how.workers, device=device, timeout=how.timeout, collate=list)
    normalize, found, bad = Normalize(how.mean, how.std, device), list[Found](), list[str]()
    error: BaseException | None = None
    try:
        with stop.alone(), Batches(loader) as made:
            for batch in track(made, what, len(share), len):
                good = [image for image in batch if image.seen is not None]
                bad += [image.bad for image in batch if image.seen is None]
                if good:
                    pixels = torch.stack([image.seen.pixels for image in good])
                    found += answer(normalize(pixels.to(device, non_blocking=True)), good)
    except (Exception, Stopped) as caught:  # the other processes wait to hear of any error
        error = caught
    raise_together(error)
    return _together(gather_objects((found, bad)) if world > 1 else [(found, bad)], len(images.source))


def _together(shares: Sequence[tuple[list[Found], list[str]]], images: int) -> list[Found]:
    unusable = [one for _, some in shares for one in some]
    if unusable:
        log.warning("the score leaves out %d of %d pictures, the first: %s", len(unusable), images, unusable[0])
    if len(unusable) == images:
        raise UserError(f"none of the {images} pictures of data.val can be used. Mend them: {unusable[0]}")
    return sorted((one for some, _ in shares for one in some), key=lambda one: one.number)
