"""Images with masks of class numbers: `train/a/x.jpg` and `train_masks/a/x.png`, in a folder or in tars."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.data.archive.listing import Split
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation, resize
from unlabeled.errors import BadSample, UserError, first_line
from unlabeled.evaluate.segmentation_decoding import JPEG, decode_mask, palette_of
from unlabeled.evaluate.segmentation_values import (
    Coding,
    Held,
    MaskSettings,
    coding_of,
    count,
    name_of,
    shares,
    together,
)
from unlabeled.progress import track
from unlabeled.text import say

# of two masks of one image the one whose ending stands first is taken; the other may be coloured for people
_ENDINGS = (b".png", b".npy", b".tif", b".tiff", b".bmp", b".gif", b".jpg", b".jpeg")
log = logging.getLogger(__name__)


class Scene(NamedTuple):
    """An image and its mask.

    Attributes:
        pixels: uint8 [C, h, w], resized for the encoder.
        mask: int16 [H, W], the image's own size; `UNLABELLED` where there is no class.
    """

    pixels: Tensor
    mask: Tensor


class Scenes(Dataset[Scene]):
    """The images of a split, each with its mask.

    Args:
        pictures: the images.
        masks: below the same paths, but for their ending.
        patch: divides the sides of an image, pixels.
        size: (height, width) of resized images; None = the multiples of the patch nearest to their own.
        interpolation: of resizing, antialiased.

    Attributes:
        coding: meaning of values; must be set before masks are read.
        lossy: a mask that is a JPEG; None = there is none.

    Raises:
        UserError: an image has no mask.
    """

    coding: Coding

    def __init__(
        self,
        pictures: Source,
        masks: Source,
        patch: int,
        size: tuple[int, int] | None = None,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.pictures, self.masks, self.pairs = pictures, masks, _paired(pictures, masks)
        self.patch, self.size, self.interpolation = patch, size, interpolation
        self.lossy: str | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Scene:
        """Read scene i. Raises UserError when image or mask cannot be used, or their sizes differ."""
        try:
            image = self.pictures.image(i)
        except BadSample as error:
            raise UserError(f"{error}. Mend it, or remove it with its mask.") from error
        height, width = image.shape[-2:]
        mask = self.fitting(i, height, width)
        size = self.size or (nearest(height, self.patch), nearest(width, self.patch))
        return Scene(resize(image, size, self.interpolation), mask)

    def fitting(self, i: int, height: int, width: int) -> Tensor:
        """Read the mask of image i, which has so many pixels. Raises UserError as `mask`, and when its size differs."""
        mask = self.mask(i)
        if (height, width) != mask.shape:
            raise UserError(
                f"{self.masks.key(self.pairs[i])} has {mask.shape[0]} rows of {mask.shape[1]} pixels, but "
                f"{self.pictures.key(i)} {height} of {width}. A mask must have its picture's size."
            )
        return mask

    def mask(self, i: int) -> Tensor:
        """Read the classes of image i, int16 [H, W]. Raises UserError when it is no mask, or a value is no class."""
        values, _, key = self._read(i)
        try:
            return torch.from_numpy(self.coding(values))
        except ValueError as error:  # it has changed since it was counted
            raise UserError(f"the mask {key}: {error}. Run the same again.") from error

    def _read(self, i: int) -> tuple[NDArray[np.int32], bytes, str]:
        """Values [H, W] of the mask of image i, its file, and its key."""
        key = self.masks.key(self.pairs[i])
        try:
            data = self.masks.read(self.pairs[i])
            if data.startswith(JPEG):
                self.lossy = self.lossy or key
            return decode_mask(data), data, key
        except Exception as error:  # decoders raise anything; the user must hear of which file
            reason = error.reason if isinstance(error, BadSample) else first_line(error)
            raise UserError(f"the mask {key}: {reason}. Mend it, or remove it with its picture.") from error

    @cached_property
    def counts(self) -> dict[int, Held]:
        """Count every value of all masks.

        Raises:
            UserError: a mask cannot be read, or two masks show one value in different colours.
        """
        return count(self._counted())

    def _counted(self) -> Iterator[tuple[str, NDArray[np.int32]]]:
        shown: dict[int, tuple[bytes, str]] = {}
        for i in track(range(len(self)), "counting the values of masks", len(self)):
            values, data, key = self._read(i)
            for value, colour in palette_of(data, values).items():
                before, first = shown.setdefault(value, (colour, key))
                if before != colour:
                    raise UserError(
                        f"value {value} is #{before.hex()} in the mask {first} and #{colour.hex()} in {key}: palettes "
                        "differ, so their numbers are not the same classes. Save masks with one palette, or as RGB and "
                        "list the colours in segmentation.values."
                    )
            yield key, values


def open_scenes(data: Opened, split: Split, **how: Any) -> Scenes:
    """Open the images of a split and their masks, which lie in the folder of its name and `_masks`.

    Args:
        how: arguments of `Scenes`.

    Raises:
        UserError: there are no such files, or an image has no mask.
    """
    beside = data.config.masks()
    if beside is None:
        raise UserError(
            f"segmentation needs masks beside pictures in a folder or a tar, found data {data.config.name!r}. "
            "Set data.name=files."
        )
    where = split if data.divided is None else "train"  # of all images, where a share of them is held out
    try:
        masks = Opened(beside).original(where)
    except UserError as error:
        prefix = getattr(data.config, where)
        raise UserError(
            f"segmentation needs the masks of {split}: for every {prefix}/a/x.jpg a {prefix}_masks/a/x.png of class "
            f"numbers. But: {error}"
        ) from error
    return Scenes(data.original(split), masks, **how)


def coded(train: Scenes, test: Scenes, settings: MaskSettings, aloud: bool) -> Coding:
    """Find the classes of the values of all masks; both splits get them.

    Args:
        train, test: the images to learn from and to score.
        settings: that give values a meaning.
        aloud: whether it is said what masks hold.

    Raises:
        UserError: they are unclear, or fewer than two.
    """
    coding = coding_of(together((train.counts, test.counts)), settings, train.lossy or test.lossy)
    if aloud:
        for split, scenes in (("train", train), ("val", test)):
            say(f"masks of {split}: {shares(scenes.counts, coding)}")
    check_learnable(coding, *(coding.present(scenes.counts) for scenes in (train, test)))
    train.coding = test.coding = coding
    return coding


def check_learnable(coding: Coding, learned: set[int], tested: set[int]) -> None:
    """Raise UserError when there are fewer than two classes; warn of those that cannot be learnt."""
    if len(learned) < 2 or not tested:
        there = [coding.names[i] for i in sorted(learned)], [coding.names[i] for i in sorted(tested)]
        unlabelled = "" if coding.ignore is None else f" {name_of(coding.ignore)} counts as unlabelled."
        raise UserError(
            f"segmentation needs two classes in the masks of train and one in those of val, found {there[0]} and "
            f"{there[1]}.{unlabelled} List what are classes in segmentation.values, or look at the masks."
        )
    if strange := [coding.names[i] for i in sorted(tested - learned)]:
        log.warning(
            "classes %s are in masks of val and in none of train: nothing can learn them, and each counts as an IoU "
            "of 0",
            strange,
        )


def _paired(pictures: Source, masks: Source) -> NDArray[np.int64]:
    """Number [n] of the mask of every image."""
    numbers: dict[bytes, tuple[int, int]] = {}
    for i, (stem, ending) in enumerate(_names(masks)):
        rank = _ENDINGS.index(ending.lower()) if ending.lower() in _ENDINGS else len(_ENDINGS)
        if rank < numbers.get(stem, (len(_ENDINGS), 0))[0]:
            numbers[stem] = rank, i
    found = np.array([numbers.get(stem, (0, -1))[1] for stem, _ in _names(pictures)], dtype=np.int64)
    if len(lost := np.flatnonzero(found < 0)):
        raise UserError(
            f"{len(lost)} of {len(found)} pictures have no mask, the first is {pictures.key(int(lost[0]))}. Masks lie "
            f"below the same paths and end in .png, such as {masks.key(0)}. Add them, or take these pictures away."
        )
    return found


def _names(pictures: Source) -> Iterator[tuple[bytes, bytes]]:
    return (os.path.splitext(pictures.name(i)) for i in range(len(pictures)))


def nearest(side: int, patch: int) -> int:
    """The multiple of the patch nearest to a side, at least one patch."""
    return max(1, round(side / patch)) * patch
