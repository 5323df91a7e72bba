"""Images that Python code holds: files by path, Pillow images, arrays and tensors, one or many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.archive.index import EXTENSIONS
from unlabeled.data.archive.listing import digest, sample_numbers
from unlabeled.data.decoding.bands import Range, Target, Values
from unlabeled.data.decoding.decode import decode, from_pillow, tensor_of
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.data.source import MAX_PIXELS, Source
from unlabeled.errors import BadSample, UserError

EXPECTED = "a Pillow image, the path of an image, an array [H, W, C], a tensor [C, H, W], or a list of one of these"
UNIT: Range = (0.0, 1.0)  # of floats, unless an export says otherwise
T = TypeVar("T")


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
    kinds = [_kind(image) for image in images]
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


def _kind(image: object) -> str | None:
    kinds = {str | Path: "a path", Image.Image: "a Pillow image", np.ndarray: "an array", Tensor: "a tensor"}
    return next((name for kind, name in kinds.items() if isinstance(image, kind)), None)


def pixels_of(image: Any, target: Target, key: str) -> Tensor:
    """An image as uint8 [channels, H, W], by the rules of files (`unlabeled.data.decoding.decode`).

    Arrays are [H, W] or [H, W, C], tensors [H, W] or [C, H, W], of uint8, of uint16 (scaled by 1/257) or of floats,
    which lie in 0..1 or are scaled by the `value_range` of the target. Raises BadSample for whatever is wrong.
    """
    if isinstance(image, str | Path):
        return decode(_bytes_of(image, key), key=key, **target._asdict())
    if isinstance(image, Image.Image):
        return from_pillow(image, key=key, **target._asdict())
    if isinstance(image, Tensor):
        return _told(lambda: _of_values(_values_of(image, target), target), key)
    return _told(lambda: _of_values(_bands_last(image, target), target), key)


def _bytes_of(path: str | Path, key: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise_if_out_of_memory(error, key)
        raise BadSample(key, f"cannot be read: {error.strerror}") from error


def _told(make: Callable[[], T], key: str) -> T:
    try:
        return make()
    except ValueError as error:
        raise BadSample(key, str(error)) from error


def _values_of(image: Tensor, target: Target) -> Values:
    """A tensor [H, W] or [C, H, W] as values [H, W, C]."""
    values: Values = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
    if values.ndim == 3 and _fits(values.shape[2], target) and not _fits(values.shape[0], target):
        raise ValueError(f"a tensor {list(values.shape)}, expected [C, H, W]: pass image.permute(2, 0, 1)")
    return _bands_last(values if values.ndim != 3 else values.transpose(1, 2, 0), target, "a tensor", "[C, H, W]")


def _bands_last(values: Values, target: Target, what: str = "an array", order: str = "[H, W, C]") -> Values:
    """Values [H, W, C] of [H, W] or [H, W, C], with channels that fit."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or not all(values.shape):
        raise ValueError(f"{what} {list(values.shape)}, expected [H, W] or {order}, not empty")
    if not _fits(values.shape[2], target):
        found = list(values.shape) if order == "[H, W, C]" else [values.shape[2], *values.shape[:2]]
        mend = ": pass image.transpose(1, 2, 0)" if what == "an array" and _fits(values.shape[0], target) else ""
        allowed = "1 or 3" if target.photographs else str(target.channels)
        raise ValueError(f"{what} {found}, expected {order} with C {allowed}{mend}")
    return values


def _fits(bands: int, target: Target) -> bool:
    return bands == target.channels or (target.photographs and bands in (1, 3))


def _of_values(values: Values, target: Target) -> Tensor:
    if values.dtype not in (np.uint8, np.uint16) and values.dtype.kind != "f":
        raise ValueError(
            f"numbers of {values.dtype}, expected uint8, uint16, or floats in 0..1: values in 0..255 become "
            "image.astype('uint8')"
        )
    if values.dtype.kind == "f" and target.value_range is None:
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                f"floats from {low:g} to {high:g}, expected 0 to 1, not normalised: pass image / 255, or uint8"
            )
        target = target._replace(value_range=UNIT)
    target.check_size(values.shape[1], values.shape[0])
    return tensor_of(target.of(values))
