"""TIFFs with pages beyond count, pages that lead in circles, strips that swell: a picture or a bad sample, at once."""

from __future__ import annotations

import resource
import struct
import time
import zlib

import numpy as np
import pytest

from unlabeled.data.decoding.decode import decode
from unlabeled.data.decoding.tiff import count_pages
from unlabeled.errors import BadSample

pytest.importorskip("tifffile")

CAP = 1_000_000
SIDE = 3


def pixels(bits: int, samples: int = 1) -> bytes:
    return (np.arange(SIDE * SIDE * samples) % 200).astype({8: "<u1", 16: "<u2", 64: "<f8"}[bits]).tobytes()


def directory(strip: int, size: int, after: int, bits: int, samples: int = 1, compression: int = 1) -> bytes:
    """One page's directory (TIFF 6.0 section 2): its strip, and where the next directory is."""
    entries = [
        (256, 3, 1, SIDE),
        (257, 3, 1, SIDE),
        (258, 3, 1, bits),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, strip),
        (277, 3, 1, samples),
        (278, 3, 1, SIDE),
        (279, 4, 1, size),
        (339, 3, 1, 3 if bits == 64 else 1),
    ]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", after)


LENGTH = len(directory(0, 0, 0, 8))


def chain(pages: int, bits: int = 8, last: int = 0) -> bytes:
    """A TIFF of many pages that share one strip; the last one's successor is directory number `last` (0 = the end)."""
    strip = pixels(bits)
    first = 8 + len(strip)
    places = [first + LENGTH * number for number in range(pages)]
    nexts = [*places[1:], places[last - 1] if last else 0]
    pieces = [directory(8, len(strip), after, bits) for after in nexts]
    return struct.pack("<2sHI", b"II", 42, first) + strip + b"".join(pieces)


def quickly(data: bytes, channels: int) -> str:
    """What comes of it: `picture`, or why not."""
    began = time.process_time()
    try:
        assert decode(data, CAP, channels=channels).shape == (channels, SIDE, SIDE)
        said = "picture"
    except BadSample as error:
        said = error.reason
    assert time.process_time() - began < 3  # 15 to 27 where all pages are read
    return said


@pytest.mark.parametrize("bits", [8, 16, 64])
def test_forty_thousand_pages_are_not_counted(bits: int) -> None:
    data = chain(40_000, bits)
    assert [quickly(data, channels) for channels in (1, 3)] == ["picture", "picture"]
    assert [quickly(data, channels) for channels in (2, 16)] == [
        f"more than {channels} pages of one band, expected {channels}" for channels in (2, 16)
    ]


@pytest.mark.parametrize("bits", [8, 16, 64])
@pytest.mark.parametrize(("pages", "last"), [(1, 1), (2, 1), (3, 2), (120, 5)])
def test_pages_that_lead_in_circles(pages: int, last: int, bits: int) -> None:
    data = chain(pages, bits, last)
    assert count_pages(data, 1000) == pages
    expected = {1: "1 band, expected 5", 120: "more than 5 pages of one band, expected 5"}
    assert quickly(data, 5) == expected.get(pages, f"{pages} pages of one band, expected 5")
    assert quickly(data, 3) == quickly(data, 1) == "picture"


def test_chains_that_lead_nowhere() -> None:
    assert count_pages(b"II*\0", 5) == count_pages(b"MM\0*" + bytes(20), 5) == 1
    for big in (b"II+\0\x08\0\0\0" + b"\xff" * 8, b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + b"\xff" * 8):
        assert count_pages(big, 5) == 1
    whole = chain(5)
    for cut in range(0, len(whole), 7):
        assert 1 <= count_pages(whole[:cut], 9) <= 5


def test_pages_are_counted_as_others_count_them() -> None:
    import io

    import tifffile

    for big in (False, True):
        for order in "<>":
            for pages in (1, 2, 5):
                buffer = io.BytesIO()
                tifffile.imwrite(
                    buffer,
                    np.zeros((pages, 4, 4), np.uint8),
                    bigtiff=big,
                    byteorder=order,
                    photometric="minisblack",
                    metadata=None,
                )
                assert count_pages(buffer.getvalue(), 9) == pages


def test_strips_that_swell() -> None:
    """Of a strip that holds 128 MiB when unpacked, no more is unpacked than the nine pixels need."""
    packer = zlib.compressobj(1)
    strip = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(128)), packer.flush()])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bits, samples, compression in ((8, 5, 8), (16, 5, 32946), (64, 1, 8), (8, 3, 32946)):
        data = struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip
        data += directory(8, len(strip), 0, bits, samples, compression)
        with pytest.raises(BadSample):
            decode(data, CAP, channels=5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 60_000  # kB
