"""Decoding of masks to the values that are stored."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unlabeled.data.decoding.npy import MAGIC, values_of

COLOUR = 1 << 24  # a colour counts as this number plus its 24 bits, a grey pixel of a colour file as its grey
MOST = (1 << 16) - 1
_STRETCHED = {2: 85, 4: 17}  # Pillow stretches grey PNGs of 2 and 4 bits to 0..255
_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")
JPEG = b"\xff\xd8\xff"


def decode_mask(data: bytes) -> NDArray[np.int32]:
    """Decode a mask to its stored values [H, W]: grey, palette numbers, or colours, see `COLOUR`.

    Args:
        data: a PNG, TIFF, BMP, GIF or JPEG, or a `.npy` of integers [H, W].

    Raises:
        ValueError: it has not one value per pixel.
        OSError: it cannot be decoded.
    """
    values = values_of(data) if data.startswith(MAGIC) else _decoded(data)
    if values.ndim == 3:
        return _one_channel(values)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise ValueError(f"{values.dtype} of shape {list(values.shape)}, expected one whole number per pixel")
    low, high = int(values.min()), int(values.max())
    if low < -MOST or high > MOST:
        raise ValueError(f"values from {low} to {high}, expected class numbers of at most 16 bits")
    return values.astype(np.int32)


def _decoded(data: bytes) -> NDArray[Any]:
    """Decode an image file; palette numbers are not looked up."""
    try:
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"no {', '.join(_FORMATS)} or .npy, or a damaged one") from error
    with opened as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"{frames} pages, expected one mask per picture")
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "F", "LA", "PA", "RGB", "RGBA"):
            raise ValueError(f"pixels of mode {image.mode}, expected grey, palette or RGB")
        values = np.array(image)
    if data.startswith(b"\x89PNG"):
        bits, kind = data[24], data[25]
        if bits == 16 and values.ndim == 3:
            raise ValueError("colours of 16 bits, expected one class number per pixel")
        values = values // _STRETCHED.get(bits, 1) if kind == 0 else values
    return values


def _one_channel(values: NDArray[Any]) -> NDArray[np.int32]:
    """Reduce channels [H, W, 1 to 4] to one value per pixel."""
    channels = values.shape[2]
    if values.dtype != np.uint8 or channels > 4:
        raise ValueError(f"{channels} channels of {values.dtype}, expected one class number per pixel")
    if channels in (2, 4):
        if values[..., -1].min() != values[..., -1].max():
            raise ValueError(
                f"an alpha channel that varies, of shape {list(values.shape)}: save class numbers [H, W], or colours "
                "without alpha"
            )
        values = values[..., :-1]
    return values[..., 0].astype(np.int32) if values.shape[2] == 1 else packed(values)


def packed(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number colours [H, W, 3]: greys by their grey, others see `COLOUR`."""
    red, green, blue = colours.astype(np.int32).transpose(2, 0, 1)
    return np.where((red == green) & (green == blue), red, COLOUR + (red << 16) + (green << 8) + blue)


def palette_of(data: bytes, values: NDArray[np.int32]) -> dict[int, bytes]:
    """Look up the colour of each value in the palette of a file; {} where it has none."""
    if data.startswith(MAGIC):
        return {}
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        colours = bytes(image.getpalette("RGB") or ()) if image.mode == "P" else b""
    return {value: colours[3 * value : 3 * value + 3] for value in np.unique(values).tolist()} if colours else {}
