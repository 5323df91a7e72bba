"""Channels, bits, ranges and copies of pictures against what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictured import drawn, photos
from PIL import Image

from unlabeled.errors import UserError
from unlabeled.start.looking import look
from unlabeled.start.opening import place


def looked(folder: Path):  # type: ignore[no-untyped-def]
    return look(place(str(folder)).config)


def test_photos(tmp_path: Path) -> None:
    found = looked(photos(tmp_path, side=50))
    assert (found.side, found.stored.channels, found.stored.bits, found.stored.value_range) == (50, 3, 8, None)
    assert not found.grey and found.copies == found.alike == 0
    pixels = np.stack([drawn(i, 50) for i in range(12)]) / 255
    assert found.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert found.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


@pytest.mark.parametrize(("noise", "grey"), [(0, True), (40, False)])
def test_grey_that_is_stored_as_rgb(tmp_path: Path, noise: int, grey: bool) -> None:
    for i in range(12):
        pixels = np.repeat(drawn(i, bands=1), 3, axis=2)
        pixels[:, :, 1] = np.clip(pixels[:, :, 1].astype(int) - noise, 0, 255)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found = looked(tmp_path)
    assert found.grey == grey and len(found.mean) == (1 if grey else 3)


def test_sixteen_bits(tmp_path: Path) -> None:
    for i in range(12):
        values = 1000 + drawn(i, bands=1)[:, :, 0].astype(np.uint16) * 8
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    stored = looked(tmp_path).stored
    assert (stored.channels, stored.bits) == (1, 16)
    low, high = stored.value_range or (0, 0)
    assert 1000 <= low < 1200 and 2700 < high <= 3050


@pytest.mark.parametrize("first", [False, True])
def test_bands_first_or_last(tmp_path: Path, first: bool) -> None:
    for i in range(12):
        values = drawn(i, bands=6).astype(np.float32) / 100
        np.save(tmp_path / f"{i}.npy", values.transpose(2, 0, 1) if first else values)
    found = looked(tmp_path)
    assert (found.stored.channels, found.stored.bits, len(found.mean)) == (6, 32, 6)
    assert found.stored.value_range == pytest.approx((0, 2.5), abs=0.1)
    assert all(0.3 < value < 0.7 for value in found.mean)


def test_copies_and_unreadable_ones(tmp_path: Path) -> None:
    photos(tmp_path)
    for name in ("x", "y"):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "3.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"nothing")
    found = looked(tmp_path)
    assert (found.copies, found.alike, len(found.found.bad)) == (2, 2, 1)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"none of 12 pictures can be read, such as \S*\.jpg: "):
        looked(tmp_path)


def test_other_numbers_of_channels_are_counted(tmp_path: Path) -> None:
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", drawn(i, bands=6 if i < 9 else 4))
    found = looked(tmp_path)
    assert found.stored.channels == 6 and found.stored.others == pytest.approx(0.25)
    assert len(found.found.bad) == 3
