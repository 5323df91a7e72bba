"""Images that Python code holds: files by path, Pillow images, arrays and tensors, one or many."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from unlabeled.data.archive.index import EXTENSIONS
from unlabeled.data.archive.listing import digest, sample_numbers
from unlabeled.data.decoding.bands import Range, Target
from unlabeled.data.decoding.values import kind_of, pixels_of
from unlabeled.data.source import MAX_PIXELS, Source
from unlabeled.errors import UserError

EXPECTED = "a Pillow image, the path of an image, an array [H, W, C], a tensor [C, H, W], or a list of one of these"


class Held(Source):
    """A source over images in memory, or in files that are named one by one; see `images_in` and `pixels_of`.

    Args:
        images: of one kind.
        channels: that they are brought to.
        value_range: what becomes 0 and 255 in images of more than 8 bits.
    """

    classes = ()

    def __init__(self, images: Sequence[Any], channels: int, value_range: Range | None = None) -> None:
        self.images, self.target = images, Target(MAX_PIXELS, channels, value_range)
        self.labels = np.full(len(images), -1, np.int64)

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be read from files."""
        return not isinstance(self.images[0], str | Path)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, i: int) -> str:
        image = self.images[i]
        return os.fspath(image) if isinstance(image, str | Path) else f"images[{i}]"

    def image(self, i: int) -> Tensor:
        return pixels_of(self.images[i], self.target, self.key(i))

    def fingerprint(self) -> str:
        return digest(
            [f"{len(self)}".encode(), *(self.image(int(i)).numpy().tobytes() for i in sample_numbers(len(self)))]
        )


def is_image_file(path: str | Path) -> bool:
    """Whether a path ends like that of one image, and is no folder."""
    return os.fsencode(path).lower().endswith(EXTENSIONS) and not os.path.isdir(path)


def images_in(given: object) -> list[Any]:
    """The images in what somebody gave: one, or several in a list, an array [N, H, W, C] or a tensor [N, C, H, W].

    Raises UserError when there are none, they are of several kinds, or something is no image.
    """
    images = _listed(given)
    if not images:
        raise UserError(f"no image was given: found an empty {type(given).__name__}, expected {EXPECTED}")
    kinds = [kind_of(image) for image in images]
    for number, (kind, image) in enumerate(zip(kinds, images, strict=True)):
        if kind is None:
            raise UserError(f"images[{number}] is a {type(image).__name__}; expected {EXPECTED}")
        if kind != kinds[0]:
            raise UserError(
                f"images[0] is {kinds[0]} and images[{number}] is {kind}; expected a list of one kind. Embed each kind "
                "by itself, or convert them, such as Image.open(path)"
            )
    return images


def _listed(given: object) -> list[Any]:
    if isinstance(given, Tensor):
        return list(given.detach().cpu()) if given.ndim == 4 else [given]
    if not isinstance(given, np.ndarray) and hasattr(given, "__array__") and not isinstance(given, Image.Image):
        given = np.asarray(given)  # columns of tables and the like
    if isinstance(given, np.ndarray):
        return list(given) if given.ndim == 4 or given.dtype.kind in "OU" else [given]
    if isinstance(given, str | bytes | Path | Image.Image) or not isinstance(given, Iterable):
        return [given]
    return list(given)
