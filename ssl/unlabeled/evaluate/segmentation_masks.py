"""Pictures with masks of class numbers: `train/a/x.jpg` and `train_masks/a/x.png`, in a folder or in tars."""

from __future__ import annotations

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
from unlabeled.evaluate.segmentation_values import Coding, Held, count
from unlabeled.progress import track

# of two masks of one picture, the one whose ending stands first: others may be coloured to look at
_ENDINGS = (b".png", b".npy", b".tif", b".tiff", b".bmp", b".gif", b".jpg", b".jpeg")


class Scene(NamedTuple):
    """A picture as the encoder sees it, and its mask as it is.

    Attributes:
        pixels: uint8 [C, h, w], h and w multiples of the patch.
        mask: int16 [H, W], the picture's own size; `UNLABELLED` where it says nothing.
    """

    pixels: Tensor
    mask: Tensor


class Scenes(Dataset[Scene]):
    """The pictures of a split, each with its mask.

    Args:
        pictures: of the split.
        masks: below the same paths, but for their ending.
        patch: what must divide the sides of a picture, pixels.
        size: (height, width) that pictures are resized to; None = the multiples of the patch nearest to their own.
        interpolation: how, antialiased.

    Attributes:
        coding: what the values of masks mean, to be set before a mask is asked for.
        lossy: a mask that is a JPEG; None = there is none.

    Raises:
        UserError: a picture has no mask.
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
        self.pictures, self.masks, self.patch, self.size = pictures, masks, patch, size
        self.interpolation = interpolation
        self.pairs = _paired(pictures, masks)
        self.lossy: str | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Scene:
        """Scene i.

        Raises:
            UserError: picture or mask cannot be used, or they differ in size.
        """
        mask = self.mask(i)
        try:
            image = self.pictures.image(i)
        except BadSample as error:
            raise UserError(f"{error}. Mend it, or remove it with its mask.") from error
        (height, width), found = image.shape[-2:], mask.shape
        if (height, width) != found:
            raise UserError(
                f"{self.masks.key(self.pairs[i])} has {found[0]} rows of {found[1]} pixels, but {self.pictures.key(i)} "
                f"{height} of {width}. A mask must have its picture's size."
            )
        return Scene(resize(image, self.shape(height, width), self.interpolation), mask)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of this size is resized to."""
        if self.size is not None:
            return self.size
        return _nearest(height, self.patch), _nearest(width, self.patch)

    def mask(self, i: int) -> Tensor:
        """The classes of picture i, int16 [H, W]; `UNLABELLED` where its mask says nothing.

        Raises:
            UserError: it is no mask, or holds a value that is no class.
        """
        values = self.values(i)
        try:
            return torch.from_numpy(self.coding(values))
        except ValueError as error:  # it has changed since it was counted
            raise UserError(f"the mask {self.masks.key(self.pairs[i])}: {error}. Run the same again.") from error

    def values(self, i: int) -> NDArray[np.int32]:
        """The values of picture i's mask as they are stored [H, W]. Raises UserError where it is no mask."""
        return self._decoded(i)[0]

    def _decoded(self, i: int) -> tuple[NDArray[np.int32], bytes]:
        """The same, and the file."""
        try:
            data = self.masks.read(self.pairs[i])
            if data.startswith(JPEG):
                self.lossy = self.lossy or self.masks.key(self.pairs[i])
            return decode_mask(data), data
        except Exception as error:  # whatever is wrong with a file, the person must hear which
            reason = error.reason if isinstance(error, BadSample) else first_line(error)
            key = self.masks.key(self.pairs[i])
            raise UserError(f"the mask {key}: {reason}. Mend it, or remove it with its picture.") from error

    @cached_property
    def counts(self) -> dict[int, Held]:
        """How often every value occurs. Reads all masks.

        Raises:
            UserError: as `values`, or a value has one colour in one mask and another in the next.
        """
        return count(self._counted())

    def _counted(self) -> Iterator[tuple[str, NDArray[np.int32]]]:
        shown: dict[int, tuple[bytes, str]] = {}
        for i in track(range(len(self)), "counting the values of masks", len(self)):
            (values, data), key = self._decoded(i), self.masks.key(self.pairs[i])
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
    """The pictures of a split and their masks, which lie in the folder of that name with `_masks` behind it.

    Args:
        data: files in a folder or in tars.
        split: which.
        how: arguments of `Scenes`.

    Raises:
        UserError: there are no such files, or a picture has no mask.
    """
    beside = data.config.masks()
    if beside is None:
        raise UserError(
            f"segmentation needs masks beside pictures in a folder or a tar, found data {data.config.name!r}."
        )
    try:
        masks = Opened(beside).original(split)
    except UserError as error:
        prefix = getattr(data.config, split)
        raise UserError(
            f"segmentation needs the masks of {split}: for every {prefix}/a/x.jpg a {prefix}_masks/a/x.png of class "
            f"numbers. But: {error}"
        ) from error
    return Scenes(data.original(split), masks, **how)


def _paired(pictures: Source, masks: Source) -> NDArray[np.int64]:
    """[n] the number of every picture's mask."""
    numbers: dict[bytes, tuple[int, int]] = {}
    for i, (stem, ending) in enumerate(_names(masks)):
        if (rank := _rank(ending)) < numbers.get(stem, (len(_ENDINGS), 0))[0]:
            numbers[stem] = rank, i
    found = np.array([numbers.get(stem, (0, -1))[1] for stem, _ in _names(pictures)], dtype=np.int64)
    if len(lost := np.flatnonzero(found < 0)):
        raise UserError(
            f"{len(lost)} of {len(found)} pictures have no mask, the first is {pictures.key(int(lost[0]))}. Masks lie "
            f"below the same paths and end in .png, such as {masks.key(0)}. Add them, or take these pictures away."
        )
    return found


def _rank(ending: bytes) -> int:
    return _ENDINGS.index(ending.lower()) if ending.lower() in _ENDINGS else len(_ENDINGS)


def _names(pictures: Source) -> Iterator[tuple[bytes, bytes]]:
    return (os.path.splitext(pictures.name(i)) for i in range(len(pictures)))


def _nearest(side: int, patch: int) -> int:
    return max(1, round(side / patch)) * patch
