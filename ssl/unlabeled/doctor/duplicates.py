"""Exact and near duplicates of images.

Near duplicates, encoded again or resized, are found by the signs of the lowest frequencies of the grey image (a DCT of
32x32 pixels, as in pHash), which encoding and resizing preserve, and confirmed by the frequencies themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unlabeled.processes import everywhere
from unlabeled.sharing.shards import HERE, Sharing, all_shards

SIDE, FREQUENCIES = 32, 8
# the most signs that may differ: with three, two of five parts of a hash are still equal
DISTANCE, PARTS, EQUAL = 3, 5, 2
KEYS = [
    np.bitwise_or.reduce([np.uint64(1 << bit) for bit in range(64) if bit % PARTS in parts])
    for parts in combinations(range(PARTS), EQUAL)
]
SLICE = 1 << 23  # hashes that are sorted at once, half a GB
HALF = np.uint64(32)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: its multiples are spread evenly (Knuth 6.4)
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


def find_copies(
    digests: NDArray[np.uint64], spectra: NDArray[np.float16], flat: NDArray[np.bool_], sharing: Sharing = HERE
) -> Copies:
    """Exact and near duplicates among n images; see `close_pairs` for several processes.

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
    found = kept[close_pairs(hashes(spectra[kept]), sharing=sharing)]
    alike = np.einsum("ij,ij->i", *(spectra[side].astype(np.float32) for side in found.T)) >= ALIKE
    return Copies(np.stack([leaders[copies], copies], axis=1), found[alike])


def hashes(spectra: NDArray[np.float16]) -> NDArray[np.uint64]:
    """The signs of each spectrum as one number [n]."""
    return np.packbits(np.pad(spectra > 0, ((0, 0), (1, 0))), axis=1).view(np.uint64).ravel()


def close_pairs(hashes: NDArray[np.uint64], distance: int = DISTANCE, sharing: Sharing = HERE) -> Pairs:
    """All pairs [m, 2] of hashes [n] that differ in at most `distance` bits, sorted. With several processes, call it on
    all: the main one's hashes count, and it alone gets the pairs.

    Three differences leave two of five parts untouched, so two close hashes have one of ten keys, the bits of two
    parts, in common (multi-index hashing, Norouzi et al. 2012, with longer keys). A shard of the work is the hashes in
    one slice of one key, sorted by it: about `SLICE` of them, whatever n is.
    """
    assert distance <= PARTS - EQUAL
    hashes = everywhere(sharing.group, partial(np.asarray, hashes))
    slices = -(-len(hashes) // SLICE)
    if slices < 2:  # done before the workers of a cluster have begun
        sharing = sharing._replace(engine=HERE.engine)
    found = all_shards(range(slices * len(KEYS)), partial(_shards, hashes, distance, slices), sharing)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *found])
    return pairs[np.lexsort(pairs.T[::-1])]


def _shards(hashes: NDArray[np.uint64], distance: int, slices: int, numbers: Sequence[int]) -> Iterator[Pairs]:
    for number in numbers:
        key, part = divmod(number, slices)
        yield _close_within(hashes, _sorted_slice(hashes, KEYS[key], part, slices), key, distance)


def _sorted_slice(hashes: NDArray[np.uint64], key: np.uint64, part: int, slices: int) -> NDArray[np.uint64]:
    """The hashes in one of so many slices: 32 bits that are equal where the bits of a key are, and 32 of its number."""
    found = []
    for start in range(0, len(hashes), SLICE):
        mixed = (hashes[start : start + SLICE] & key) * GOLDEN >> HALF
        rows = np.flatnonzero(mixed % np.uint64(slices) == part)
        found.append(mixed[rows] << HALF | (start + rows).astype(np.uint64))
    return np.sort(np.concatenate(found))


def _close_within(hashes: NDArray[np.uint64], slice_: NDArray[np.uint64], key: int, distance: int) -> Pairs:
    """Pairs in a slice that have its key in common and none before it: each is compared with the one `step` on."""
    mixed, order = slice_ >> HALF, (slice_ & np.uint64(2**32 - 1)).astype(np.int64)
    hashes = hashes[order]
    left, found, step = np.arange(len(order)), [np.empty((0, 2), np.int64)], 1
    while len(left):
        left = left[left + step < len(order)]
        left = left[mixed[left] == mixed[left + step]]
        close, differing = left, hashes[left] ^ hashes[left + step]
        for bits in KEYS[: key + 1]:
            wanted = (differing & bits == 0) == (bits == KEYS[key])
            close, differing = close[wanted], differing[wanted]
        close = close[_ones(differing) <= distance]
        found.append(np.stack([order[close], order[close + step]], axis=1))
        step += 1
    return np.concatenate(found)


def differing_bits(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Hamming distances of hashes [n]."""
    return _ones(a ^ b)


def _ones(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    return _ONES[values.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.int64)


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
