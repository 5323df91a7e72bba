"""Pictures of any number of channels: bands and pages as they are stored, wide numbers by rules worked out by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from encoded import UPRIGHT, encode, npy
from PIL import Image
from torch import Tensor

from unlabeled.data.decoding import tiff as reader
from unlabeled.data.decoding.decode import decode
from unlabeled.errors import BadSample, UserError

CAP = 89_478_485
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30))
KINDS = [np.uint8, np.uint16, np.float32]


def bands(count: int, dtype: Any = np.uint8, height: int = 5, width: int = 7) -> np.ndarray:
    """[count, H, W] that spans 0..65535, or 0..255."""
    values = RNG.integers(0, 65536, (count, height, width))
    values[0, 0, :2] = 0, 65535
    return (values >> 8 if dtype == np.uint8 else values).astype(dtype)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None, **options})
    return buffer.getvalue()


def pages(arrays: Any, **options: Any) -> bytes:
    """A TIFF with a page per array, each written on its own."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for array in arrays:
            file.write(array, photometric="minisblack", metadata=None, **options)
    return buffer.getvalue()


def by_hand(values: np.ndarray) -> list[Any]:
    """What is expected of `bands`: 16 bits by 1/257; floats span the same range, so stretching is the same division."""
    return values.tolist() if values.dtype == np.uint8 else [[[round(v / 257) for v in r] for r in b] for b in values]


def luma(pixels: Tensor) -> list[list[int]]:
    """ITU-R 601 of [3, H, W] in Pillow's fixed point."""
    return [
        [(19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16 for r, g, b in zip(*row, strict=True)]
        for row in zip(*pixels.tolist(), strict=True)
    ]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF"])
def test_one_channel_is_the_grey_of_the_colours(format: str) -> None:
    data = encode(PICTURE, format)
    assert decode(data, CAP, channels=1).tolist() == [luma(decode(data, CAP))]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_grey_stays_what_it_is(format: str) -> None:
    data = encode(PICTURE.convert("L"), format)
    assert torch.equal(decode(data, CAP, channels=1), decode(data, CAP)[:1])
    wide = Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16))
    assert format == "JPEG" or decode(encode(wide, format), CAP, channels=1).tolist() == [[[0, 0, 1, 255]]]


def test_bands_that_pillow_has_are_taken_as_they_are_stored() -> None:
    for mode, format in (("RGBA", "PNG"), ("RGBA", "TIFF"), ("LA", "PNG"), ("LA", "TIFF"), ("CMYK", "TIFF")):
        stored = RNG.integers(0, 256, (5, 7, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
        found = decode(encode(Image.fromarray(stored, mode), format), CAP, channels=stored.shape[2])
        assert found.permute(1, 2, 0).tolist() == stored.tolist(), (mode, format)


def test_no_ink_is_0_though_a_jpeg_of_adobes_stores_255() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", quality=100)
    assert b"Adobe" in data
    assert decode(data, CAP, channels=4)[:, 0, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [2, 3, 4, 16])
def test_pages_of_one_band_are_stacked_in_order(count: int, dtype: Any) -> None:
    values = bands(count, dtype)
    assert decode(pages(values), CAP, channels=count).tolist() == by_hand(values)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 16])
def test_bands_of_one_page(count: int, dtype: Any, planes: str, caplog: pytest.LogCaptureFixture) -> None:
    values = bands(count, dtype)
    stored = values if planes == "separate" else values.transpose(1, 2, 0)
    found = decode(tiff(stored, planarconfig=planes), CAP, channels=count)
    assert found.tolist() == by_hand(values)
    assert found.stride()[0] == 1 and not caplog.records


@pytest.mark.parametrize(
    "options", [{"compression": "zlib"}, {"compression": "lzw", "predictor": True}, {"tile": (16, 16)}]
)
def test_compressed_and_tiled_bands(options: dict[str, Any]) -> None:
    values = bands(6, np.uint16, 20, 35)
    assert decode(
        tiff(values.transpose(1, 2, 0), planarconfig="contig", **options), CAP, channels=6
    ).tolist() == by_hand(values)


def test_bands_that_pillow_would_drop_are_not_lost() -> None:
    values = bands(5)
    data = tiff(values.transpose(1, 2, 0), photometric="rgb", planarconfig="contig")
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert decode(data, CAP, channels=5).tolist() == values.tolist()
    assert decode(data, CAP).tolist() == values[:3].tolist()


def test_one_band_that_pillow_cannot_read() -> None:
    values = bands(1, np.float64)
    assert decode(tiff(values[0]), CAP, channels=1).tolist() == by_hand(values)
    assert decode(tiff(values[0]), CAP).tolist() == by_hand(values) * 3


def test_a_broken_second_page_does_not_cost_the_first() -> None:
    grey = encode(PICTURE.convert("L"), "TIFF")
    directory = int.from_bytes(grey[4:8], "little")
    link = directory + 2 + 12 * int.from_bytes(grey[directory : directory + 2], "little")
    assert grey[link : link + 4] == bytes(4)
    broken = grey[:link] + b"\x05\0\0\0" + grey[link + 4 :]
    assert torch.equal(decode(broken, CAP), decode(grey, CAP))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_bands_stand_upright(orientation: int) -> None:
    values = bands(5).transpose(1, 2, 0)
    data = tiff(values, planarconfig="contig", extratags=[(274, 3, 1, orientation, True)])
    assert decode(data, CAP, channels=5).permute(1, 2, 0).tolist() == UPRIGHT[orientation](values).tolist()


def test_arrays_have_their_bands_first_or_last() -> None:
    values = bands(4)
    for stored in (values, values.transpose(1, 2, 0)):
        assert decode(npy(stored), CAP, channels=4).tolist() == values.tolist()
    square = bands(4, height=4, width=4)
    assert decode(npy(square), CAP, channels=4).permute(1, 2, 0).tolist() == square.tolist()
    assert decode(npy(bands(3).transpose(1, 2, 0)), CAP, channels=1).shape == (1, 5, 7)


def scaled(values: np.ndarray) -> list[Any]:
    """0..10000 to 0..255, clipped."""
    return [[[round(min(max(v, 0), 10_000) * 255 / 10_000) for v in r] for r in b] for b in values.tolist()]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_a_range_of_values_fills_the_8_bits(dtype: Any) -> None:
    values = (bands(4, np.uint16) % 12_000).astype(dtype)
    for data in (pages(values), tiff(values, planarconfig="separate"), npy(values)):
        assert decode(data, CAP, channels=4, value_range=(0, 10_000)).tolist() == scaled(values)
    for data in (tiff(values[:3], planarconfig="separate"), npy(values[:3])):
        assert decode(data, CAP, value_range=(0, 10_000)).tolist() == scaled(values[:3])
    assert decode(tiff(values[0]), CAP, channels=1, value_range=(0, 10_000)).tolist() == scaled(values[:1])


def test_a_range_of_values_is_for_all_bits_of_a_colour() -> None:
    values = bands(3, np.uint16) % 12_000
    data = tiff(values.transpose(1, 2, 0), photometric="rgb")
    assert decode(data, CAP, value_range=(0, 10_000)).tolist() == scaled(values)
    png = encode(PICTURE, "PNG")
    assert torch.equal(decode(png, CAP, value_range=(0, 10_000)), decode(png, CAP)), "8 bits are not scaled"
    with pytest.raises(BadSample, match="PNG of 16-bit colours"):
        decode(png[:24] + b"\x10" + png[25:], CAP, value_range=(0, 10_000))


FOUR = tiff(bands(4, np.uint16).transpose(1, 2, 0), planarconfig="contig")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(PICTURE, "PNG"), "3 bands, expected 4"),
        (encode(PICTURE, "JPEG"), "3 bands, expected 4"),
        (encode(PICTURE.convert("L"), "JPEG"), "1 band, expected 4"),
        (encode(PICTURE.convert("P"), "PNG"), "1 band, expected 4"),
        (encode(PICTURE.convert("L"), "TIFF"), "1 band, expected 4"),
        (pages(bands(3)), "3 pages of one band, expected 4"),
        (pages(bands(5, np.float64)), "more than 4 pages of one band, expected 4"),
        (tiff(bands(5).transpose(1, 2, 0), planarconfig="contig"), "5 bands, expected 4"),
        (tiff(bands(3, np.uint16).transpose(1, 2, 0), planarconfig="contig"), "3 bands, expected 4"),
        (pages([*bands(3), bands(1, height=6)[0]]), r"uint8 \[5, 7\], uint8 \[6, 7\], expected one band each and all"),
        (pages([*bands(3), bands(1, np.uint16)[0]]), r"uint16 \[5, 7\], uint8 \[5, 7\], expected one band each"),
        (tiff(bands(4, np.uint16, 101, 1000), planarconfig="separate"), "1000x101 pixels are more than the 100,000"),
        (
            tiff(bands(4, np.uint16, 101, 1000).transpose(1, 2, 0), planarconfig="contig", tile=(16, 16)),
            "1000x101 pixels are more than",
        ),
        (pages([*bands(3, np.float64), bands(1, np.float64, height=6)[0]]), r"float64 \[5, 7\], float64 \[6, 7\]"),
        (pages([*bands(3), bands(1, height=101, width=1000)[0]]), "1000x101 pixels are more than the 100,000"),
        (tiff(bands(4).astype(np.complex64), planarconfig="separate"), "pixels of type complex64"),
        (tiff(np.full((4, 5, 7), np.nan, np.float32), planarconfig="separate"), "NaN or infinite"),
        (FOUR[:-1], "cut off"),
        (npy(bands(3)), r"shape \[3, 5, 7\], expected \[H, W, 4\] or \[4, H, W\]"),
        (npy(bands(1)[0]), "1 band, expected 4"),
        (b"II*\0" + bytes(99), "index 0 out of range"),
    ],
)
def test_other_bands_are_bad(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        decode(data, 100_000, channels=4)


def test_without_tifffile_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    monkeypatch.setattr(reader, "installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install tifffile imagecodecs"):
        decode(FOUR, CAP, channels=4)
    with pytest.raises(BadSample, match="not a picture"):
        decode(b"II*\0" + bytes(99), CAP)
    assert decode(encode(Image.new("RGBA", (4, 4)), "TIFF"), CAP, channels=4).shape == (4, 4, 4)


def test_any_damage_to_bands_ends_in_pixels_or_a_bad_sample() -> None:
    for data in (FOUR, pages(bands(4)), npy(bands(4)), tiff(bands(4, np.uint16), compression="zlib")):
        for _ in range(150):
            damaged = bytearray(data)
            for at in RNG.integers(0, min(len(data), 400), 3):
                damaged[at] = RNG.integers(0, 256)
            with contextlib.suppress(BadSample):
                assert decode(bytes(damaged), 1_000_000, channels=4).dtype == torch.uint8
