"""TIFFs that Pillow reads in part or not at all: several bands of 16 bits or floats, and more than four of any kind."""

from __future__ import annotations

import importlib.util
import io
import logging
from typing import Any, Literal

from unlabeled.data.decoding.bands import Target, Values, stacked
from unlabeled.errors import UserError

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# what these log of a file, once per image, their errors say too
for _name in ("tifffile", "PIL.TiffImagePlugin"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def installed() -> bool:
    """Whether tifffile is installed."""
    return importlib.util.find_spec("tifffile") is not None


def values_of(data: bytes, target: Target) -> Values:
    """The bands of the first page, or pages of one band each: [H, W, bands], upright. Raises UserError where tifffile
    is missing, ValueError for too many pixels or bands that cannot become the target's, other errors for a damaged
    file."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError("TIFFs of many or wide bands need tifffile: pip install tifffile imagecodecs") from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        # the pages that hold the image: the first, unless as many of one band are wanted
        alone = file.pages[0].samplesperpixel > 1
        count = 1 if alone else target.pages(count_pages(data, target.channels + 1))
        pages = [file.pages[number] for number in range(count)]
        for page in pages:
            _check(page, len(data), target)
        first, *more = [_values(page) for page in pages]
        values = first if first.ndim == 3 else stacked([first, *more])
        return upright(values, pages[0].tags.valueof(274, 1))


def count_pages(data: bytes, most: int) -> int:
    """Count the pages of a TIFF or BigTIFF, 1 to `most`, by its chain of directories (TIFF 6.0 section 2). The chain
    ends where it leads out of the file or back to a page that was counted."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    big = data[:4] in (b"II+\0", b"MM\0+")
    counter, tag, pointer = (8, 20, 8) if big else (2, 12, 4)

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    seen: set[int] = set()
    at = number(8 if big else 4, pointer)
    while at not in seen and 0 < at < len(data) and len(seen) < most:
        seen.add(at)
        at = number(at + counter + tag * number(at, counter), pointer)
    return max(1, len(seen))


def _check(page: Any, size: int, target: Target) -> None:
    """Raise ValueError before anything is decoded that is too large, cut off or of other bands."""
    target.check_size(page.imagewidth, page.imagelength)
    target.check_size(page.tilewidth, page.tilelength)
    if page.imagedepth != 1:
        raise ValueError(f"a volume of {page.imagedepth} planes, expected a picture")
    if page.samplesperpixel > 1:
        target.check_bands(page.samplesperpixel)
    end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if end > size:
        raise ValueError(f"cut off: {size:,} bytes, expected {end:,}")


def _values(page: Any) -> Values:
    """[H, W] of a page of one band, [H, W, bands] of others."""
    values: Values = page.asarray(maxworkers=1)
    if page.samplesperpixel == 1:
        return values.reshape(page.imagelength, page.imagewidth)
    return values.transpose(1, 2, 0) if page.axes.startswith("S") else values


def upright(values: Values, orientation: int) -> Values:
    """Values [H, W, bands] turned by EXIF's orientation (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:
        values = values.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values
