"""Pictures with masks of class numbers: `train/a/x.jpg` and `train_masks/a/x.png`, in a folder or in tars."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from unlabeled.data.source import Split
from unlabeled.data.sources import Files, Pictures
from unlabeled.data.views import Interpolation, resize
from unlabeled.errors import BadSample, UserError, first_line

UNLABELLED = -1
MAX_CLASSES = 1024
# Pillow stretches grey of 2 and 4 bits to 0..255
_STRETCHED = {2: 85, 4: 17}
_ENDING = b".png"


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
        masks: PNGs below the same paths, but for their ending.
        patch: what must divide the sides of a picture, pixels.
        size: (height, width) that pictures are resized to; None = the multiples of the patch nearest to their own.
        interpolation: how, antialiased.
        classes: class numbers are below; None = below `MAX_CLASSES`.
        ignore: the value of unlabelled pixels.

    Raises:
        UserError: a picture has no mask.
    """

    def __init__(
        self,
        pictures: Pictures,
        masks: Pictures,
        patch: int,
        size: tuple[int, int] | None = None,
        interpolation: Interpolation = "bicubic",
        classes: int | None = None,
        ignore: int = 255,
    ) -> None:
        self.pictures, self.masks, self.patch, self.size = pictures, masks, patch, size
        self.interpolation, self.classes, self.ignore = interpolation, classes or MAX_CLASSES, ignore
        self.pairs = _paired(pictures, masks)

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
        """The mask of picture i, int16 [H, W].

        Raises:
            UserError: it is no mask, or holds a number that is no class.
        """
        key = self.masks.key(self.pairs[i])
        try:
            values = decode_mask(self.masks.read(self.pairs[i]))
        except Exception as error:  # whatever is wrong with a file, the person must hear which
            reason = error.reason if isinstance(error, BadSample) else first_line(error)
            raise UserError(f"the mask {key}: {reason}. Mend it, or remove it with its picture.") from error
        labelled = values != self.ignore
        if (strange := values[labelled & ((values < 0) | (values >= self.classes))]).size:
            raise UserError(
                f"the mask {key} holds {strange[0]}; expected classes 0 to {self.classes - 1}, or {self.ignore} where "
                f"unlabelled. Raise segmentation.classes (at most {MAX_CLASSES}), or name the value of unlabelled "
                f"pixels: segmentation.ignore={strange[0]}."
            )
        return torch.from_numpy(np.where(labelled, values, UNLABELLED).astype(np.int16))

    def present(self) -> set[int]:
        """The classes that occur in any mask. Reads them all.

        Raises:
            UserError: see `mask`.
        """
        seen = torch.zeros(self.classes + 1, dtype=torch.bool)
        for i in range(len(self)):
            seen[self.mask(i).flatten().int() - UNLABELLED] = True
        return set((seen.nonzero().flatten() + UNLABELLED).tolist()) - {UNLABELLED}


def open_scenes(data: Any, split: Split, **how: Any) -> Scenes:
    """The pictures of a split and their masks, which lie in the folder of that name with `_masks` behind it.

    Args:
        data: the `data:` section, files in a folder or in tars.
        split: which.
        how: arguments of `Scenes`.

    Raises:
        UserError: there are no such files, or a picture has no mask.
    """
    if not isinstance(data, Files):
        raise UserError(f"segmentation needs masks beside pictures in a folder or a tar, found data {data.name!r}.")
    train, val = (None if prefix is None else f"{prefix}_masks" for prefix in (data.train, data.val))
    beside = Files(path=data.path, val_path=data.val_path, train=train or "", val=val, max_pixels=data.max_pixels)
    try:
        masks = beside.source(split)
    except UserError as error:
        prefix = getattr(data, split)
        raise UserError(
            f"segmentation needs the masks of {split}: for every {prefix}/a/x.jpg a {prefix}_masks/a/x.png of class "
            f"numbers. But: {error}"
        ) from error
    return Scenes(data.source(split), masks, **how)


def decode_mask(data: bytes) -> NDArray[Any]:
    """Values [H, W] of a grey or palette PNG, of 1 to 16 bits, exactly as they are stored.

    Raises:
        ValueError: it has several channels.
        OSError: it cannot be decoded.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        values = np.array(image)
    if values.ndim != 2:
        raise ValueError(f"{values.shape[2]} channels, expected a grey or palette PNG of class numbers")
    bits, grey = data[24], data[25] == 0
    return values.astype(np.int32) // (_STRETCHED.get(bits, 1) if grey else 1)


def _paired(pictures: Pictures, masks: Pictures) -> NDArray[np.int64]:
    """[n] the number of every picture's mask."""
    numbers = {stem: i for i, (stem, ending) in enumerate(_names(masks)) if ending.lower() == _ENDING}
    found = np.array([numbers.get(stem, -1) for stem, _ in _names(pictures)], dtype=np.int64)
    if len(lost := np.flatnonzero(found < 0)):
        raise UserError(
            f"{len(lost)} of {len(found)} pictures have no mask, the first is {pictures.key(int(lost[0]))}. Masks lie "
            f"below the same paths and end in .png, such as {masks.key(0)}. Add them, or take these pictures away."
        )
    return found


def _names(pictures: Pictures) -> Iterator[tuple[bytes, bytes]]:
    return (os.path.splitext(pictures.name(i)) for i in range(len(pictures)))


def _nearest(side: int, patch: int) -> int:
    return max(1, round(side / patch)) * patch
