"""A look at pictures: how many, how large, which channels and values, unreadable ones, copies, labels."""

from __future__ import annotations

import io
import time
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unlabeled.backbone.folder import IMAGENET
from unlabeled.data.archive.listing import sample_numbers
from unlabeled.data.decoding import npy, tiff
from unlabeled.data.decoding.bands import Target
from unlabeled.data.label.holdout import grouped, may_be_equal
from unlabeled.data.opened import Opened
from unlabeled.data.source import MAX_CHANNELS, EncodedConfig, Source
from unlabeled.doctor.compared import compare
from unlabeled.doctor.pictures import Survey, survey
from unlabeled.errors import UserError
from unlabeled.progress import task

SECONDS, MOST = 8.0, 2000  # that the survey may take, about; pictures that it looks at
COMPARED = 4000  # files of equal size that are read to find copies
COLOURLESS, SHARE = 1 / 255, 0.95  # difference of channels, and share of the pictures, to be called grey
OUTER = (0.1, 99.9)  # percent of the values of a picture that are black and white at most
NEAR_MEAN, NEAR_STD = 0.1, 1.5  # differences that do not matter


class Stored(NamedTuple):
    """Pictures as they are stored, from a sample.

    Attributes:
        channels: of most pictures; grey and RGB together are 3.
        others: share of the sample with another number.
        bits: 8, 16 or 32 (floats).
        value_range: values that become 0 and 255; None = 8 bits.
        clear: share of the sample that is transparent somewhere.
        reading, decoding: seconds of a picture.
    """

    channels: int
    others: float
    bits: int
    value_range: tuple[float, float] | None
    clear: float
    reading: float
    decoding: float


class Looked(NamedTuple):
    """Findings about pictures.

    Attributes:
        config: that reads them, with their channels and range of values.
        source: all of them.
        stored: as they are stored.
        found: the survey of a sample.
        copies: pictures of all whose file is equal to another one's.
        alike: pictures of the sample that look the same as another one.
        grey: whether they are stored as RGB and have no colours.
        mean, std: of the channels, on the [0, 1] scale.
    """

    config: EncodedConfig
    source: Source
    stored: Stored
    found: Survey
    copies: int
    alike: int
    grey: bool
    mean: list[float]
    std: list[float]

    @property
    def side(self) -> int:
        """Short side of the median picture, pixels."""
        return int(np.median(np.minimum(self.found.height, self.found.width)))

    @property
    def plain(self) -> bool:
        """Whether mean and standard deviation are near ImageNet's."""
        if len(self.mean) != len(IMAGENET.mean):
            return False
        off = max(abs(ours - theirs) for ours, theirs in zip(self.mean, IMAGENET.mean, strict=True))
        ratios = [ours / theirs for ours, theirs in zip(self.std, IMAGENET.std, strict=True)]
        return off <= NEAR_MEAN and all(1 / NEAR_STD <= ratio <= NEAR_STD for ratio in ratios)


def look(config: EncodedConfig, seed: int = 0) -> Looked:
    """Look at the training pictures of a source. Raises UserError when there are none, or none can be read."""
    source = Opened(config).train
    stored = as_stored(source)
    statistics = {"mean": (0.5,) * stored.channels, "std": (0.5,) * stored.channels}
    config = config.model_copy(update={**statistics, "value_range": stored.value_range})
    source = Opened(config).train
    most = min(MOST, max(64, int(SECONDS / (stored.reading + stored.decoding + 1e-4))))
    shown = task("looking at pictures", min(most, len(source)))
    found = survey(source, most, seed, 0, 600, shown.advance)
    shown.close()
    if not len(found):
        raise UserError(
            f"none of {len(source):,} pictures can be read, such as {found.bad[0].key}: {found.bad[0].reason}. "
            "Name a folder of others."
        )
    compared = compare(found, None)
    pairs = () if compared is None else (*compared.copies.exact[:, 1], *compared.copies.near[:, 1])
    mean, std = found.statistics()
    grey = stored.channels == 3 and _colourless(found)
    if grey:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    values = ([round(float(value), 4) for value in some] for some in (mean, np.maximum(std, 1e-3)))
    return Looked(config, source, stored, found, equal_files(source), len(set(pairs)), grey, *values)


def _colourless(found: Survey) -> bool:
    spread = np.ptp(found.mean, axis=1) + np.ptp(found.square, axis=1)
    return bool(np.mean(spread < COLOURLESS) >= SHARE)


def as_stored(source: Source) -> Stored:
    """Channels, bits, range of values and cost of pictures, from up to 64 of them. Raises UserError when none can be
    read."""
    bands: Counter[int] = Counter()
    bits, ranges, reading, decoding, first, clear = [8], [], [], [], "", 0
    for i in sample_numbers(len(source)).tolist():
        try:
            began = time.perf_counter()
            data = source.read(i)
            reading.append(time.perf_counter() - began)
            values = values_of(data)
            decoding.append(time.perf_counter() - began - reading[-1])
            clear += values.shape[2] == 3 and _see_through(data)
        except UserError:
            raise
        except Exception as error:  # whatever is wrong with a picture: the survey counts it
            first = first or f"{source.key(i)}: {error}"
            continue
        bands[values.shape[2]] += 1
        if values.dtype != np.uint8:
            bits.append(16 if values.dtype.kind in "ui" and values.dtype.itemsize == 2 else 32)
            ranges.append(np.percentile(values[np.isfinite(values)], OUTER))
    if not bands:
        raise UserError(f"none of {len(source):,} pictures can be read, such as {first}. Name others.")
    channels = _together(bands)
    fitting = sum(n for count, n in bands.items() if count == channels or {count, channels} <= {1, 3})
    cost = float(np.mean(reading)), float(np.mean(decoding))
    return Stored(channels, 1 - fitting / bands.total(), max(bits), _range(ranges), clear / bands.total(), *cost)


def _together(bands: Counter[int]) -> int:
    """The number of channels to read all pictures with."""
    common = bands.most_common(1)[0][0]
    return 3 if common in (1, 3) and bands[1] and bands[3] else common


def _range(ranges: list[NDArray[Any]]) -> tuple[float, float] | None:
    """The range of values of a whole set: of the 5th and the 95th picture of a hundred, to three digits."""
    if not ranges:
        return None
    low, high = np.percentile(np.array(ranges)[:, 0], 5), np.percentile(np.array(ranges)[:, 1], 95)
    low = 0.0 if 0 <= low < high / 20 else low
    low, high = (float(f"{value:.3g}") for value in (low, high))
    return (low, high if high > low else low + 1)


def values_of(data: bytes) -> NDArray[Any]:
    """The values of a picture as they are stored: [H, W, bands]. Raises whatever is wrong with it."""
    if data.startswith(npy.MAGIC):
        values = npy.values_of(data)
        if values.ndim == 3 and values.shape[0] < values.shape[2] and values.shape[0] <= MAX_CHANNELS:
            return values.transpose(1, 2, 0)
        return values[:, :, None] if values.ndim == 2 else values
    if data.startswith(tiff.MAGICS) and tiff.installed():
        return _of_tiff(data)
    with Image.open(io.BytesIO(data)) as image:
        colours = (
            image.convert("RGB") if image.mode in ("P", "RGBA", "CMYK", "YCbCr", "LA", "PA", "HSV", "LAB") else image
        )
        values = np.asarray(colours.convert("L") if image.mode == "1" else colours)
    return values if values.ndim == 3 else values[:, :, None]


def _see_through(data: bytes) -> bool:
    """Whether a picture of colours has transparent parts, which are read in the colours stored below them."""
    if data.startswith((npy.MAGIC, *tiff.MAGICS)):
        return False
    with Image.open(io.BytesIO(data)) as image:
        return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def _of_tiff(data: bytes) -> NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        bands = file.pages[0].samplesperpixel
        pages = len(file.pages)
    channels = bands if bands > 1 else pages if 1 < pages <= MAX_CHANNELS else 1
    values = tiff.values_of(data, Target(1 << 40, channels))
    return values if values.ndim == 3 else values[:, :, None]


def equal_files(source: Source) -> int:
    """The number of files that are equal to another one: those of equal size are compared, at most COMPARED."""
    if source.marks is None or not source.encoded:
        return 0
    group = grouped(source, may_be_equal(source)[:COMPARED])
    return len(group) - len(np.unique(group))
