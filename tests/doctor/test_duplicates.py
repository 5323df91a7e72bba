"""Copies are found whatever file they come in, and nothing else is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.data.decoding.decode import decode
from unlabeled.data.opened import Opened
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.doctor import duplicates
from unlabeled.doctor.duplicates import close_pairs, differing_bits, find_copies, groups, hashes, spectrum
from unlabeled.sharing.shards import Sharing


def naive_pairs(hashes: np.ndarray, distance: int) -> list[list[int]]:
    numbers = [int(value) for value in hashes]
    n = len(numbers)
    return [[i, j] for i in range(n) for j in range(i + 1, n) if bin(numbers[i] ^ numbers[j]).count("1") <= distance]


@pytest.mark.parametrize(
    ("distance", "slice_", "workers"), [(0, 300, 1), (1, 50, 1), (2, 300, 1), (3, 300, 1), (3, 50, 2)]
)
def test_multi_index_search_equals_the_double_loop(
    distance: int, slice_: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SLICE", slice_)
    random = np.random.default_rng(distance)
    values = random.integers(0, 2**64, 300, dtype=np.uint64)
    # neighbours with 0 to 5 bits turned, wherever they lie
    for i in range(100):
        turned = random.choice(64, i % 6, replace=False)
        values[i + 100] = values[i] ^ np.uint64(sum(1 << int(bit) for bit in turned))
    # a crowd that shares one part, among them neighbours that share no other
    values[200:240] = values[200:240] & np.uint64(0xFFFFFFFFFFFF0000) | np.uint64(7)
    values[240:280] = values[200:240] ^ np.uint64(1 << 20 | 1 << 40 | 1 << 60)
    values = random.permutation(values)
    expected = naive_pairs(values, distance)
    assert len(expected) >= 16
    assert close_pairs(values, distance, Sharing(workers)).tolist() == expected


def test_differing_bits() -> None:
    a, b = np.array([0, 2**64 - 1, 5], np.uint64), np.array([0, 0, 4], np.uint64)
    assert differing_bits(a, b).tolist() == [0, 64, 1]


def test_no_pictures_no_pairs() -> None:
    assert close_pairs(np.empty(0, np.uint64)).shape == (0, 2)


def test_groups_are_what_pairs_connect() -> None:
    pairs = np.array([[5, 6], [1, 5], [2, 3], [6, 9], [8, 9]])
    assert groups(pairs, 10).tolist() == [0, 1, 2, 2, 4, 1, 1, 7, 1, 1]


def test_hash_bits_are_signs() -> None:
    spectra = np.full((2, 63), -1, np.float16)
    spectra[1, [0, 40, 62]] = 1
    assert differing_bits(*hashes(spectra)[:, None]).item() == 3


def encoded(image: torch.Tensor, quality: int, scale: float) -> torch.Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return decode(file.getvalue(), 10**6)


def fields(n: int) -> list[torch.Tensor]:
    """Smooth random pictures of 96 px: as different as photographs are."""
    random = np.random.default_rng(0)
    noise = (Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(n))
    smooth = (np.array(one.resize((96, 96), Image.Resampling.BICUBIC)) for one in noise)
    return [torch.from_numpy(one).permute(2, 0, 1) for one in smooth]


@pytest.mark.parametrize(("quality", "scale"), [(90, 1), (75, 0.5), (90, 1.7)])
def test_encoded_anew_and_resized_looks_the_same(quality: int, scale: float) -> None:
    pictures = fields(40)
    both = np.stack([spectrum(picture) for picture in [*pictures, *(encoded(p, quality, scale) for p in pictures)]])
    found = find_copies(np.arange(80, dtype=np.uint64), both, np.zeros(80, bool))
    pairs = [[i, i + 40] for i in range(40)]
    assert [pair for pair in found.near.tolist() if pair not in pairs] == []
    # a frequency that is all but absent may change its sign, and four such hide a copy
    assert len(found.near) >= 38 and len(found.exact) == 0


def test_different_pictures_do_not_look_the_same() -> None:
    source = Opened(Shapes(train_size=500, size=32)).train
    spectra = np.stack([spectrum(source.image(i)) for i in range(500)])
    assert len(find_copies(np.arange(500, dtype=np.uint64), spectra, np.zeros(500, bool)).near) == 0


def test_hashes_alone_do_not_decide() -> None:
    # the same signs, other weights
    a, b = np.full(63, 0.1, np.float16), np.linspace(1e-3, 1, 63).astype(np.float16)
    spectra = np.stack([a, b / np.linalg.norm(b.astype(np.float32))])
    assert differing_bits(*hashes(spectra)[:, None]).item() == 0
    assert len(find_copies(np.arange(2, dtype=np.uint64), spectra, np.zeros(2, bool)).near) == 0


def test_flat_pictures_are_copies_only_to_the_pixel() -> None:
    # a trace of light from one side, as in many pictures of nothing
    faint = [torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (7, 7, 90)]
    for one in faint:
        one[:, :, 16:] += 1
    spectra = np.stack([spectrum(one) for one in faint])
    found = find_copies(np.array([4, 4, 5], np.uint64), spectra, np.ones(3, bool))
    assert found.exact.tolist() == [[0, 1]] and len(found.near) == 0


def test_copies_to_the_pixel_are_told_once() -> None:
    picture, other = fields(2)
    spectra = np.stack([spectrum(one) for one in (other, picture, picture, picture, encoded(picture, 90, 1))])
    found = find_copies(np.array([1, 9, 9, 9, 3], np.uint64), spectra, np.zeros(5, bool))
    assert found.exact.tolist() == [[1, 2], [1, 3]] and found.near.tolist() == [[1, 4]]
