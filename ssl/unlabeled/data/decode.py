"""Bytes of a picture to uint8 [3, H, W], or `BadSample` and nothing else.

A picture's first bytes decide what it is, never its name. JPEG goes through torchvision (bit for bit
Pillow's result, CMYK included, in less than half the time), all else through Pillow, which is held to
`FORMATS`. The size is read from the header and held against `max_pixels` before anything is decoded.

Rules by which everything becomes RGB:

- 8-bit grey, palette, 1-bit, CMYK, YCCK, YCbCr: Pillow's conversion to RGB.
- Alpha, also of a palette: dropped, not composited, as torchvision's `ImageFolder` does; the colours stored
  under transparent pixels show.
- 16-bit grey: scaled by 1/257 and rounded, never clipped. 16-bit colour: Pillow keeps the high byte.
- 32-bit integers: as 16-bit where all values lie in 0..65535, else stretched from the picture's own minimum
  and maximum.
- Floats: stretched from the picture's own minimum and maximum; not finite is a bad sample.
- Animations and multi-page files: the first frame.
- EXIF orientation is applied; orientation that cannot be read is taken as upright.
- `.npy` (of one array, never a pickle): [H, W], [H, W, 3 or 1] or [3 or 1, H, W], bands last where both fit; numbers
  by the rules above.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unlabeled.data import npy
from unlabeled.data.bands import RGB, bands_last, to_8_bit, with_channels
from unlabeled.errors import BadSample

# never EPS and its like: reading those runs programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})


def decode(data: bytes, max_pixels: int, key: str = "") -> Tensor:
    """Decode one picture.

    Args:
        data: the file's bytes.
        max_pixels: width times height above which a picture is refused before it is decoded. Pillow's own
            limit (`2 * PIL.Image.MAX_IMAGE_PIXELS`, 178,956,970) holds as well for all formats but JPEG.
        key: what to call the picture in an error.

    Returns:
        uint8 [3, H, W], upright; channels last in memory, as decoders write and resizing likes it.

    Raises:
        BadSample: for whatever is wrong with the picture.
    """
    if not data:
        raise BadSample(key, "the file is empty")
    try:
        if data.startswith(npy.MAGIC):
            return _npy(data, max_pixels)
        return _jpeg(data, max_pixels) if data.startswith(b"\xff\xd8\xff") else _pillow(data, max_pixels, key)
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample(key, f"not a picture in one of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise BadSample(key, _reason(error)) from error


def _jpeg(data: bytes, max_pixels: int) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    _check_pixels(_jpeg_size(data), max_pixels)
    # frombuffer wants memory that may be written to
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)


def _npy(data: bytes, max_pixels: int) -> Tensor:
    values = bands_last(npy.values_of(data), RGB)
    _check_pixels((values.shape[1], values.shape[0]), max_pixels)
    pixels = with_channels(to_8_bit(values), RGB)
    # the bytes may not be written to, so they are copied once
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)


def _pillow(data: bytes, max_pixels: int, key: str) -> Tensor:
    with warnings.catch_warnings():
        # Pillow warns of what is refused or handled here, once per worker
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return from_pillow(image, max_pixels, key)


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels are more than the {max_pixels:,} allowed")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the frame header (ITU-T T.81 section B.2.2), reading markers only."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _FRAME_HEADERS:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        elif marker in _WITHOUT_LENGTH:
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("a JPEG without a frame header, or cut off before it")


def from_pillow(image: Image.Image, max_pixels: int, key: str = "") -> Tensor:
    """A picture that somebody else opened: uint8 [3, H, W], by the same rules.

    Raises:
        BadSample: for whatever is wrong with it.
    """
    try:
        _check_pixels(image.size, max_pixels)
        image.load()
        return torch.from_numpy(_rgb(_upright(image))).permute(2, 0, 1)
    except Exception as error:
        raise BadSample(key, _reason(error)) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata must not cost a sound picture
        return image


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3] by the rules at the top of this file."""
    if image.mode.startswith("I") or image.mode == "F":
        return with_channels(to_8_bit(np.asarray(image))[:, :, None], RGB)
    return np.array(image.convert("RGB"))


def _reason(error: Exception) -> str:
    """The first line of an error; of torchvision's "decode_jpeg, FILE.cpp:171, REASON", the reason."""
    first = (str(error).splitlines() or [""])[0]
    if first.startswith("decode_jpeg, "):
        first = first.split(", ", 2)[-1]
    return first or type(error).__name__
