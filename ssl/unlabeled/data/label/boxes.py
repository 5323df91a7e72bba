"""Boxes of images: of all images in flat arrays that worker processes share, and of one image or of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Boxes(NamedTuple):
    """The n boxes of one image."""

    corners: Tensor  # [n, 4] float32: left, top, right, bottom, pixels
    classes: Tensor  # [n] int64
    crowd: Tensor  # [n] bool, whether a box is around a crowd: not learnt from, and no error where it is found
    areas: Tensor  # [n] float64, of the objects in the whole image, square pixels: small, medium and large go by them

    def chosen(self, which: Tensor) -> Boxes:
        """Some of them, by flags [n] or numbers [m]."""
        return Boxes(*(column[which] for column in self))

    @classmethod
    def joined(cls, several: Sequence[Boxes]) -> Boxes:
        """The boxes of several images as those of one."""
        return cls(*(torch.cat(column) for column in zip(*several, strict=True)))


class BatchBoxes(NamedTuple):
    """The boxes of a batch, image by image; the counts are on the host, so that nothing is waited for."""

    corners: Tensor  # [all, 4] float32, as in `Boxes`
    classes: Tensor  # [all] int64
    counts: tuple[int, ...]  # of each image

    @classmethod
    def of(cls, images: Sequence[Boxes]) -> BatchBoxes:
        counts = tuple(len(boxes.classes) for boxes in images)
        return cls(torch.cat([one.corners for one in images]), torch.cat([one.classes for one in images]), counts)

    def each(self) -> list[tuple[Tensor, Tensor]]:
        """Corners [n, 4] and classes [n] of every image."""
        return list(zip(self.corners.split(self.counts), self.classes.split(self.counts), strict=True))

    def to(self, device: torch.device) -> BatchBoxes:
        corners, classes = (tensor.to(device, non_blocking=True) for tensor in self[:2])
        return BatchBoxes(corners, classes, self.counts)

    def repeated(self, images: int) -> BatchBoxes:
        """Those of so many images, the same ones again and again."""
        rows, each = [row % len(self.counts) for row in range(images)], self.each()
        corners, classes = (torch.cat([each[row][part] for row in rows]) for part in (0, 1))
        return BatchBoxes(corners, classes, tuple(self.counts[row] for row in rows))

    def first(self, images: int) -> BatchBoxes:
        """Those of the first images."""
        counts = self.counts[:images]
        return BatchBoxes(self.corners[: sum(counts)], self.classes[: sum(counts)], counts)


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of n images, one after the other: m in all."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("ends", "corners", "classes", "crowd", "areas")

    ends: NDArray[np.int64]  # [n + 1], those of image i are `ends[i]` to `ends[i + 1]`
    corners: NDArray[np.float64]  # [m, 4] left, top, right, bottom
    classes: NDArray[np.int64]  # [m], -1 where a class is not one of the source's
    crowd: NDArray[np.uint8]  # [m]
    areas: NDArray[np.float64]  # [m], in the unit of the corners
    relative: bool = False  # whether corners are shares of width and height, not pixels

    @classmethod
    def of(cls, images: Sequence[Sequence[Any]], relative: bool = False) -> BoxTable:
        """From rows (left, top, right, bottom, class, crowd, area) of each image; relative ones have shares."""
        rows = np.array([row for rows in images for row in rows], np.float64).reshape(-1, 7)
        ends = np.cumsum([0, *map(len, images)], dtype=np.int64)
        crowd = rows[:, 5].astype(np.uint8)
        return cls(ends, rows[:, :4].copy(), rows[:, 4].astype(np.int64), crowd, rows[:, 6].copy(), relative)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def rows(self, i: int) -> slice:
        """The rows of image i."""
        return slice(int(self.ends[i]), int(self.ends[i + 1]))

    def boxes(self, i: int, height: int, width: int) -> Boxes:
        """The boxes of image i, which has so many pixels, of known classes."""
        rows = self.rows(i)
        corners, areas = torch.from_numpy(self.corners[rows].copy()), torch.from_numpy(self.areas[rows].copy())
        if self.relative:
            corners, areas = corners * torch.tensor([width, height, width, height]), areas * width * height
        classes, crowd = (torch.from_numpy(column[rows].copy()) for column in (self.classes, self.crowd))
        return Boxes(corners.float(), classes, crowd.bool(), areas).chosen(classes >= 0)

    def largest(self) -> NDArray[np.int64]:
        """The class of the largest box of every image that is none of a crowd [n], -1 where there is none."""
        found = np.full(len(self), -1, np.int64)
        owner = np.repeat(np.arange(len(self)), np.diff(self.ends))
        order = np.lexsort((self.areas, owner))  # the largest comes last of its image
        order = order[(self.crowd[order] == 0) & (self.classes[order] >= 0)]
        found[owner[order]] = self.classes[order]
        return found

    def renumbered(self, numbers: NDArray[np.int64]) -> BoxTable:
        """The same boxes, the class of number c with the number `numbers[c]`, -1 = none."""
        classes = np.where(self.classes < 0, -1, np.append(numbers, -1)[self.classes])
        return BoxTable(self.ends, self.corners, classes, self.crowd, self.areas, self.relative)

    def digest(self) -> bytes:
        """A hash of all boxes."""
        hashed = blake2b(b"relative" if self.relative else b"", digest_size=16)
        for name in self.COLUMNS:
            hashed.update(np.ascontiguousarray(getattr(self, name)).data)
        return hashed.digest()
