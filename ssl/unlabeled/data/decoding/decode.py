"""Bytes of an image to uint8 [C, H, W], or `BadSample` and nothing else.

An image's first bytes decide what it is, never its name. JPEG goes through torchvision (bit for bit Pillow's result,
CMYK included, in less than half the time), `.npy` and wide TIFFs through `npy` and `tiff`, all else through Pillow,
which is held to `FORMATS`. The size is read from the header and held against `max_pixels` before anything is decoded.

Rules by which everything becomes RGB:

- 8-bit grey, palette, 1-bit, CMYK, YCCK, YCbCr: Pillow's conversion to RGB.
- Alpha, also of a palette: dropped, not composited, as torchvision's `ImageFolder` does; the colours stored
  under transparent pixels show.
- 16-bit grey: scaled by 1/257 and rounded, never clipped. 16-bit colour: Pillow keeps the high byte.
- 32-bit integers: as 16-bit where all values lie in 0..65535, else stretched from the image's own minimum and maximum.
- Floats: stretched from the image's own minimum and maximum; not finite is a bad sample.
- Animations and multi-page files: the first frame, unless a TIFF has three pages of one band each.
- TIFFs of one or three bands that Pillow does not read: grey or RGB.
- EXIF orientation is applied; orientation that cannot be read is taken as upright.

One channel: the same, then Pillow's grey of it (ITU-R 601); grey stays what it is.

Any other number of channels: exactly so many bands as they are stored, else a bad sample. Nothing is converted: alpha
is a band, so is each ink of CMYK (0 = none, as Pillow reads it: also where a JPEG of Adobe's stores it inverted), and a
palette is one. In a TIFF they are the bands of the first page, or the pages, if each has one band and they are of one
size, in their order. Of 16-bit bands in a PNG Pillow has the high bytes.

Where a `value_range` is given, its ends become 0 and 255 in all images of more than 8 bits, instead of the rules
above; a PNG of 16-bit colours, of which Pillow has the high byte only, is a bad sample then.

`.npy` (of one array, never a pickle) is [H, W], [H, W, bands] or [bands, H, W], bands last where both fit; one or three
bands become RGB or grey, any other number must be that of the channels. Its numbers follow the rules above.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from unlabeled.data.archive.index import AVIF
from unlabeled.data.decoding import npy, tiff
from unlabeled.data.decoding.bands import GREY, RGB, Pixels, Range, Target, Values, bands_last, stacked, with_channels
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.errors import BadSample, UserError

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# never EPS and its like: reading those runs programs
FORMATS = ("JPEG", "PNG", "WEBP", *(("AVIF",) if AVIF else ()), "BMP", "TIFF", "GIF", "PPM")

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})


def decode(
    data: bytes, max_pixels: int, key: str = "", channels: int = RGB, value_range: Range | None = None
) -> Tensor:
    """Decode one image.

    Args:
        data: the file's bytes.
        max_pixels: width times height above which an image is refused before it is decoded. Pillow's own
            limit (`2 * PIL.Image.MAX_IMAGE_PIXELS`, 178,956,970) holds as well for all formats that it reads.
        key: what to call the image in an error.
        channels: how many, 1 to 16.
        value_range: what becomes 0 and 255 in images of more than 8 bits, clipped beyond; None = the rules above.

    Returns:
        uint8 [channels, H, W], upright; channels last in memory, as decoders write and resizing likes it.

    Raises:
        BadSample: for whatever is wrong with the image.
        UserError: it takes a library that is not installed.
        Interrupted: no memory is left.
    """
    if not data:
        raise BadSample(key, "the file is empty")
    target = Target(max_pixels, channels, value_range)
    try:
        return (
            _jpeg(data, target) if data.startswith(_JPEG) and target.photographs else tensor_of(_pixels(data, target))
        )
    except UserError:
        raise
    except UnidentifiedImageError:
        raise BadSample(key, f"not a picture in one of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise_if_out_of_memory(error, key)
        raise BadSample(key, _reason(error)) from error


def from_pillow(
    image: Image.Image, max_pixels: int, key: str = "", channels: int = RGB, value_range: Range | None = None
) -> Tensor:
    """An image that somebody else opened: uint8 [channels, H, W], by the same rules. Raises BadSample for whatever is
    wrong with it."""
    try:
        return tensor_of(_converted(image, Target(max_pixels, channels, value_range)))
    except Exception as error:
        raise_if_out_of_memory(error, key)
        raise BadSample(key, _reason(error)) from error


def tensor_of(pixels: Pixels) -> Tensor:
    """[H, W, C] to [C, H, W]; memory that may not be written to is copied."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)


def _pixels(data: bytes, target: Target) -> Pixels:
    if data.startswith(npy.MAGIC):
        values = bands_last(npy.values_of(data), target.channels)
        target.check_size(values.shape[1], values.shape[0])
        return target.of(values)
    if data.startswith(tiff.MAGICS):
        return _tiff(data, target)
    if target.value_range is not None and data.startswith(_PNG) and data[24] == 16 and data[25] != 0:
        raise ValueError("a PNG of 16-bit colours cannot be scaled by value_range; expected a TIFF or .npy")
    return _pillow(data, target)


def _jpeg(data: bytes, target: Target) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    target.check_size(*_jpeg_size(data))
    # frombuffer wants memory that may be written to
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    rgb = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return rgb if target.channels == RGB else tensor_of(with_channels(rgb.permute(1, 2, 0).numpy(), GREY))


def _tiff(data: bytes, target: Target) -> Pixels:
    try:
        return _pillow(data, target)
    except UnidentifiedImageError:
        if target.photographs and not tiff.installed():  # most likely damaged: no reason to stop a run
            raise
    except _NotAllOfIt:
        pass
    return target.of(tiff.values_of(data, target))


class _NotAllOfIt(Exception):
    """Pillow has fewer bands or bits than a TIFF has."""


def _pillow(data: bytes, target: Target) -> Pixels:
    with warnings.catch_warnings():
        # Pillow warns of what is refused or handled here, once per worker
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _converted(image, target)


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


def _converted(image: Image.Image, target: Target) -> Pixels:
    """[H, W, channels] of an open image, by the rules at the top of this file."""
    target.check_size(*image.size)
    if isinstance(image, TiffImageFile):
        # of colours the high byte will do, and what Pillow drops is no colour
        will_do = target.photographs and target.value_range is None and not _is_wide(image)
        if not will_do and not _is_whole(image):
            raise _NotAllOfIt("Pillow has a part of its bands or bits only")
        if image.mode in ("1", "L") or _is_wide(image):
            return target.of(_bands(image, target))
    image.load()
    return _colours(_upright(image), target)


def _is_wide(image: Image.Image) -> bool:
    """Whether it has one band of integers of more than 8 bits, or of floats."""
    return image.mode.startswith(("I", "F"))


def _is_whole(image: TiffImageFile) -> bool:
    """Whether Pillow reads all bands of a TIFF page with all their bits."""
    bits: tuple[int, ...] = image.tag_v2.get(258, (1,))
    samples = image.tag_v2.get(277, 1)
    return samples == len(image.getbands()) and (samples == 1 or max(bits) <= 8)


def _bands(image: TiffImageFile, target: Target) -> Values:
    """The pages of one band each that make an image: [H, W, bands]."""
    pages = []
    for number in range(target.pages(_count_pages(image, target.channels + 1))):
        image.seek(number)
        target.check_size(*image.size)
        image.load()
        page = _upright(image)
        pages.append(np.array(page.convert("L") if page.mode == "1" else page))
    return stacked(pages)


def _count_pages(image: TiffImageFile, most: int) -> int:
    """Count readable pages, 1 to `most`; the first unreadable page ends the count."""
    found = 1
    with suppress(Exception):
        while found < most:
            image.seek(found)
            found += 1
    return found


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # which would copy it
    except MemoryError:
        raise
    except Exception:  # broken metadata must not cost a sound image
        return image


def _colours(image: Image.Image, target: Target) -> Pixels:
    if _is_wide(image):
        return target.of(np.asarray(image)[:, :, None])
    if not target.photographs:
        values = np.array(image)
        return target.of(values if values.ndim == 3 else values[:, :, None])
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(rgb) if target.channels == RGB else np.array(rgb.convert("L"))[:, :, None]


def _reason(error: Exception) -> str:
    """The first line of an error; of torchvision's "decode_jpeg, FILE.cpp:171, REASON", the reason."""
    first = (str(error).splitlines() or [""])[0]
    if first.startswith("decode_jpeg, "):
        first = first.split(", ", 2)[-1]
    return first or type(error).__name__
