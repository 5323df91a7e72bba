"""Images that Python code holds, by the rules of files: Pillow images, arrays, tensors and paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.decoding.bands import Range, Target, Values
from unlabeled.data.decoding.decode import decode, from_pillow, tensor_of
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.errors import BadSample

UNIT: Range = (0.0, 1.0)  # of floats, unless a value range is given
# the kinds of images, in words
KINDS: dict[Any, str] = {
    str | Path: "a path",
    Image.Image: "a Pillow image",
    np.ndarray: "an array",
    Tensor: "a tensor",
}
T = TypeVar("T")


def kind_of(image: object) -> str | None:
    """The kind of an image in words; None = it is none."""
    return next((name for kind, name in KINDS.items() if isinstance(image, kind)), None)


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
    if isinstance(image, np.ndarray):
        return _told(lambda: _of_values(_bands_last(image, target), target), key)
    raise BadSample(key, f"a {type(image).__name__}, expected {', '.join(KINDS.values())}")


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
