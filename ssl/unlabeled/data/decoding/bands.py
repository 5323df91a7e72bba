"""Numbers of any width and bands of any number to 8 bits and as many channels as are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Values = NDArray[Any]
Range = tuple[float, float]
GREY, RGB = 1, 3


class Target(NamedTuple):
    """The form that images are decoded to."""

    max_pixels: int  # width times height above which they are refused
    channels: int = RGB  # 1 to 16
    value_range: Range | None = None  # what becomes 0 and 255, see `to_8_bit`

    @property
    def photographs(self) -> bool:
        """Whether colours are converted (grey or RGB); other numbers of bands are taken as they are stored."""
        return self.channels in (GREY, RGB)

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError for too many pixels."""
        if width * height > self.max_pixels:
            raise ValueError(f"{width}x{height} pixels are more than the {self.max_pixels:,} allowed")

    def check_bands(self, found: int) -> None:
        """Raise ValueError for a number of bands that `with_channels` does not take."""
        if found != self.channels and not (self.photographs and found in (GREY, RGB)):
            raise ValueError(f"{found} band{'s' * (found != 1)}, expected {self.channels}")

    def pages(self, found: int) -> int:
        """Number of one-band pages that make an image: as many as there are channels, or one. Of more pages than
        channels it does not matter how many there are. Raises ValueError when there are more or fewer."""
        if found == self.channels:
            return found
        if self.photographs or found == 1:  # an animation, or what `check_bands` has a word on
            return 1
        many = f"more than {self.channels}" if found > self.channels else f"{found}"
        raise ValueError(f"{many} pages of one band, expected {self.channels}")

    def of(self, values: Values) -> Pixels:
        """Values [H, W, bands] of any kind as uint8 [H, W, channels]. Raises ValueError: see `to_8_bit` and
        `check_bands`."""
        self.check_bands(values.shape[2])
        return with_channels(to_8_bit(values, self.value_range), self.channels)


def to_8_bit(values: Values, value_range: Range | None = None) -> Pixels:
    """Pixels of any kind of number as 0..255, rounded; uint8 stay what they are. Raises ValueError for NaN, infinite
    values or no numbers.

    `value_range` becomes 0 and 255, clipped beyond; None = integers in 0..65535 are scaled by 1/257, other integers and
    floats stretched from their own minimum and maximum.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uif":
        raise ValueError(f"pixels of type {values.dtype}, expected integers or floats")
    if value_range is not None:
        return _stretched(values, *value_range)
    unsigned = values.dtype.kind == "u" and values.dtype.itemsize <= 2
    if unsigned or (values.dtype.kind != "f" and values.min() >= 0 and values.max() <= 0xFFFF):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return _stretched(values, values.min(), values.max())


def _stretched(values: Values, low: float, high: float) -> Pixels:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("pixels that are NaN or infinite")
    low, high = float(low), float(high)
    wide = values.astype(np.float64)
    # in place: new memory for each step takes several times as long
    wide -= low
    wide *= 255 / ((high - low) or 1)
    np.rint(wide, out=wide)
    return wide.clip(0, 255, out=wide).astype(np.uint8)


def stacked(pages: Sequence[Values]) -> Values:
    """Pages [H, W] as [H, W, bands]. Raises ValueError when they differ in size or in kind of number, or have bands of
    their own."""
    kinds = {f"{page.dtype} {list(page.shape)}" for page in pages}
    if len(kinds) > 1 or pages[0].ndim != 2:
        raise ValueError(f"pages of {', '.join(sorted(kinds))}, expected one band each and all alike")
    return np.stack(pages, axis=2)


def bands_last(values: Values, channels: int) -> Values:
    """A view [H, W, bands] of [H, W], [H, W, bands] or [bands, H, W]: what fits `channels`, bands last where both do.
    Raises ValueError when neither fits."""
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3:
        for fits in ((channels,), (GREY, RGB) if channels in (GREY, RGB) else ()):
            if values.shape[2] in fits:
                return values
            if values.shape[0] in fits:
                return values.transpose(1, 2, 0)
    raise ValueError(f"shape {list(values.shape)}, expected [H, W, {channels}] or [{channels}, H, W]")


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Pixels [H, W, bands], as many as `channels` or grey to RGB (repeated) or RGB to grey (Pillow's, ITU-R 601)."""
    bands = pixels.shape[2]
    if (bands, channels) == (GREY, RGB):
        return np.repeat(pixels, RGB, axis=2)
    if (bands, channels) == (RGB, GREY):
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    assert bands == channels, "checked before"
    return pixels
