"""Images in a folder with boxes: what the sources COCO and YOLO make of their files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from unlabeled.data.archive.listing import Listing
from unlabeled.data.archive.pictures import Folder, Pictures
from unlabeled.data.decoding.bands import Target
from unlabeled.data.label.boxes import Boxes


class BoxedPictures(Pictures):
    """Files below a folder, each with boxes. The label of an image is the class of its largest box, -1 without one."""

    boxed = True

    def __init__(self, root: bytes, listing: Listing, target: Target) -> None:
        super().__init__(Folder(root), listing, target)
        assert listing.boxes is not None
        self.table = listing.boxes

    def boxes(self, i: int, height: int, width: int) -> Boxes:
        return self.table.boxes(i, height, width)

    def relabelled(self, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Self:
        """A copy with other labels and class names; boxes of classes that these lack are left out."""
        other = super().relabelled(labels, classes)
        other.table = self.table.renumbered(numbers_in(self.classes, classes))
        return other


def numbers_in(names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """The number of each name among classes, -1 where it is none of them."""
    rank = {name: number for number, name in enumerate(classes)}
    return np.array([rank.get(name, -1) for name in names], np.int64)
