"""Exact and near duplicates of images.

Near duplicates, encoded again or resized, are found by the signs of the lowest frequencies of the grey image (a DCT of
32x32 pixels, as in pHash), which encoding and resizing preserve, and confirmed by the frequencies themselves.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE, FREQUENCIES = 32, 8
# the most signs that may differ: with three, one of four parts of a hash is still equal
DISTANCE, PARTS = 3, 4
ALIKE = 0.97
_WAVES = np.cos(math.pi * np.arange(FREQUENCIES)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
_ONES = np.array([i.bit_count() for i in range(1 << 16)], np.uint8)

Pairs = NDArray[np.int64]


class Copies(NamedTuple):
    """Pairs [m, 2] of image numbers, the smaller first.

    Attributes:
        exact: each image with the first of the same pixels.
        near: images of different pixels that look the same.
    """

    exact: Pairs
    near: Pairs


def spectrum(image: Tensor) -> NDArray[np.float16]:
    """The lowest frequencies [63] of an image uint8 [C, H, W], of length one: free of brightness and contrast."""
    small = F.interpolate(image[None], size=(SIDE, SIDE), mode="bilinear", antialias=True)[0]
    waves = (_WAVES @ small.double().mean(0).numpy() @ _WAVES.T).ravel()[1:]
    return (waves / (np.linalg.norm(waves) or 1)).astype(np.float16)


def find_copies(digests: NDArray[np.uint64], spectra: NDArray[np.float16], flat: NDArray[np.bool_]) -> Copies:
    """Exact and near duplicates among n images.

    Args:
        digests: [n], equal for equal pixels.
        spectra: [n, 63], see `spectrum`.
        flat: [n], images of one colour: they all look the same, so only exact copies count.
    """
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    leaders = first[group]
    numbers = np.arange(len(digests))
    copies = numbers[leaders != numbers]
    kept = np.sort(first)[~flat[np.sort(first)]]
    found = kept[close_pairs(hashes(spectra[kept]))]
    alike = np.einsum("ij,ij->i", *(spectra[side].astype(np.float32) for side in found.T)) >= ALIKE
    return Copies(np.stack([leaders[copies], copies], axis=1), found[alike])


def hashes(spectra: NDArray[np.float16]) -> NDArray[np.uint64]:
    """The signs of each spectrum as one number [n]; neighbouring frequencies go to different parts of it."""
    signs = np.pad(spectra > 0, ((0, 0), (1, 0))).reshape(-1, 64 // PARTS, PARTS).transpose(0, 2, 1)
    return np.packbits(signs.reshape(-1, 64), axis=1).view(np.uint64).ravel()


def close_pairs(hashes: NDArray[np.uint64], distance: int = DISTANCE) -> Pairs:
    """All pairs [m, 2] of hashes [n] that differ in at most `distance` bits, sorted.

    At most three differences leave one of four 16-bit parts untouched (multi-index hashing, Norouzi et al. 2012), so
    only hashes that share a part are compared.
    """
    assert distance < PARTS
    parts = np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, PARTS)
    found = [_close_within(hashes, part, distance) for part in parts.T]
    return np.unique(np.concatenate(found), axis=0)


def _close_within(hashes: NDArray[np.uint64], part: NDArray[np.uint16], distance: int) -> Pairs:
    """Pairs among hashes whose `part` is equal: sorted by it, each is compared with the one `step` places on."""
    order = np.argsort(part, kind="stable")
    part, hashes = part[order], hashes[order]
    left, found, step = np.arange(len(order)), [np.empty((0, 2), np.int64)], 1
    while len(left):
        left = left[left + step < len(order)]
        left = left[part[left] == part[left + step]]
        close = left[differing_bits(hashes[left], hashes[left + step]) <= distance]
        found.append(np.stack([order[close], order[close + step]], axis=1))
        step += 1
    return np.concatenate(found)


def differing_bits(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Hamming distances of hashes [n]."""
    return _ONES[(a ^ b).view(np.uint16).reshape(-1, PARTS)].sum(axis=1, dtype=np.int64)


def groups(pairs: Pairs, n: int) -> NDArray[np.int64]:
    """The smallest number that pairs connect each of n images with: [n]."""
    label = np.arange(n)
    while True:
        before, low = label.copy(), label[pairs].min(axis=1)
        for side in pairs.T:
            np.minimum.at(label, side, low)
        label = label[label]
        if np.array_equal(label, before):
            return label
