"""A `.npy` of one array is a picture like any other: plain numbers of the size that its header says, or a BadSample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoded import npy

from unlabeled.data.decoding.decode import decode
from unlabeled.errors import BadSample

CAP = 10_000
RNG = np.random.default_rng(0)


def image(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(dtype)


def test_bands_come_first_or_last() -> None:
    colour = image(4, 6, 3)
    for array in (colour, np.asfortranarray(colour), colour.transpose(2, 0, 1)):
        for version in ((1, 0), (2, 0)):
            pixels = decode(npy(array, version=version), CAP)
            assert pixels.permute(1, 2, 0).tolist() == colour.tolist()
            assert pixels.stride()[0] == 1, "channels last in memory, as from any other decoder"
    both = image(3, 6, 3)
    assert decode(npy(both), CAP).permute(1, 2, 0).tolist() == both.tolist()


def test_grey_is_repeated() -> None:
    grey = image(4, 6)
    for array in (grey, grey[:, :, None], grey[None]):
        assert decode(npy(array), CAP).tolist() == [grey.tolist()] * 3


def test_numbers_of_other_kinds_follow_the_rules_of_pictures() -> None:
    wide = np.array([[0, 128, 129, 65535]])
    for dtype in ("<u2", ">u2", "<u4", "<i8"):
        assert decode(npy(wide.astype(dtype)), CAP)[0].tolist() == [[0, 0, 1, 255]]
    for dtype in ("<i2", "<f2", ">f4", "<f8"):
        assert decode(npy(np.array([[-100, 20, 60, 100]], dtype)), CAP)[0].tolist() == [[0, 153, 204, 255]]


def test_the_pixels_may_be_written_to() -> None:
    data = npy(image(4, 6, 3))
    decode(data, CAP).zero_()
    assert decode(data, CAP).any()


GOOD = npy(image(4, 6, 3))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([[None, {}]], dtype=object)), "array of object"),
        (npy(np.array([["a", "b"]])), "array of <U1"),
        (npy(np.zeros((2, 2), [("x", "u1")])), "expected integers or floats"),
        (npy(np.zeros((2, 2), bool)), "pixels of type bool"),
        (npy(np.zeros((2, 2), np.complex64)), "array of complex64"),
        (npy(image(4, 6, 5)), r"shape \[4, 6, 5\], expected \[H, W, 3\]"),
        (npy(image(4)), r"shape \[4\]"),
        (npy(image(2, 4, 6, 3)), r"shape \[2, 4, 6, 3\]"),
        (npy(np.uint8(3)), r"shape \[\]"),
        (npy(image(0, 6, 3)), "side to be 0"),
        (npy(np.full((2, 2), np.inf)), "NaN or infinite"),
        (npy(image(101, 100)), "100x101 pixels are more than the 10,000 allowed"),
        (GOOD[:-1], "199 bytes, its header says 200"),
        (GOOD + b"\0", "201 bytes, its header says 200"),
        (GOOD.replace(b"(4, 6, 3)", b"(9, 6, 3)"), "200 bytes, its header says 290"),
        (GOOD.replace(b"(4, 6, 3)", b"(-4,-6,3)"), "side to be 0"),
        (GOOD.replace(b"(4, 6, 3)", b"(4, 6, x)"), "malformed"),
        (GOOD.replace(b"NUMPY\1", b"NUMPY\7"), r"version \[7, 0\]"),
        (GOOD[:9], "header"),
        (b"\x93NUMPY", "version"),
    ],
)
def test_what_is_no_picture_is_bad(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        decode(data, CAP)
