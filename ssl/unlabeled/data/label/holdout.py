"""A share of every class held out to evaluate on, chosen by the names of images: `data.split: 0.2`.

Images of a class are ranked by a hash of the seed and of their name below the folder of the class; the first of them
are held out. The order of files, the machine and other classes decide nothing. An image that is added takes its rank
among the others, and the number held out grows by one at most: of the others in its class at most one changes sides.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.archive.index import readable
from unlabeled.data.archive.listing import Split
from unlabeled.data.label.labels import canonical
from unlabeled.data.label.overlap import digests
from unlabeled.data.label.subset import Part
from unlabeled.data.source import Source

READ = 20_000  # images that are read to find equal ones, at most

Rows = NDArray[np.int64]


class Side(Part):
    """One side of a divided source: a source like any other, by the names and files of the whole."""

    def __init__(self, source: Source, indices: Rows, split: Split) -> None:
        super().__init__(source, indices)
        self.encoded, self._split = source.encoded, split

    @property
    def whole(self) -> Source:
        return self

    @property
    def unlabelled(self) -> int:
        return 0  # they are here

    @property
    def marks(self) -> Rows | None:
        marks = self.source.marks
        return None if marks is None else marks[self.indices]

    @property
    def skipped(self) -> Counter[str]:
        return self.source.skipped if self._split == "train" else Counter()

    def read(self, i: int) -> bytes:
        return self.source.read(int(self.indices[i]))

    def name(self, i: int) -> bytes:
        return self.source.name(int(self.indices[i]))

    def file(self, i: int) -> bytes | None:
        return self.source.file(int(self.indices[i]))


class Divided(NamedTuple):
    """Both sides of a source, and what could not be as asked.

    Attributes:
        train, val: the sides, images in their old order.
        alone: classes whose images all stay in train, as there is one, or copies of one.
        copies: number of images that are equal to others; None = too many have to be read to know.
    """

    train: Side
    val: Side
    alone: tuple[str, ...]
    copies: int | None

    def side(self, split: Split) -> Side:
        return self.train if split == "train" else self.val


def divide(source: Source, share: float, seed: int) -> Divided:
    """Hold out a share of every class; of an unlabelled source a share of all. Images without a label in a labelled
    source stay in train.

    Args:
        source: all images.
        share: in (0, 1), rounded to whole images; at least one image of a class is on each side where it has two.
        seed: which images.
    """
    labels = source.labels if source.classes else np.zeros(len(source), np.int64)
    group, copies = equal(source)
    held = choose(labels, ranks(source, labels, seed), group, share)
    counts, names = np.bincount(labels[labels >= 0]), source.classes or ("",)
    none = np.setdiff1d(np.flatnonzero(counts), labels[held])
    train, val = Side(source, np.flatnonzero(~held), "train"), Side(source, np.flatnonzero(held), "val")
    return Divided(train, val, tuple(names[i] for i in none), copies)


def ranks(source: Source, labels: Rows, seed: int) -> Rows:
    """The place of every image [n] among all: by the hash of its name below its class, of equal ones by that of its
    whole name, then as they come. `labels` are numbers of `source.classes`, if it has any."""
    names, classes = [_composed(source.name(i)) for i in range(len(source))], source.classes
    known: dict[tuple[bytes, int], int] = {}

    def below(name: bytes, label: int) -> bytes:
        folder = name[: name.rfind(b"/") + 1]
        if (start := known.get((folder, label))) is None:
            start = known[folder, label] = _end_of(folder, classes[label]) if classes and label >= 0 else 0
        return name[start:]

    first = np.array([_hash(seed, below(name, label)) for name, label in zip(names, labels.tolist(), strict=True)])
    _, place, count = np.unique(first, return_inverse=True, return_counts=True)
    then = np.array([_hash(seed, name) if tied else 0 for name, tied in zip(names, count[place] > 1, strict=True)])
    found = np.empty(len(names), np.int64)
    found[np.lexsort((then, first))] = np.arange(len(names))
    return found


def choose(labels: Rows, rank: Rows, group: Rows, share: float) -> NDArray[np.bool_]:
    """Choose whole groups of n images, about `share` of every class; see `divide`.

    Groups of several images come first, the largest before others, and are held out where that brings their class
    nearer to its share; single images fill it up, by rank. A group of several classes is not chosen: a test on it would
    have two right answers.

    Args:
        labels: [n], of the class; images of -1 are not chosen.
        rank: [n], different numbers; the smallest of a group counts.
        group: [n], equal numbers for what stays together.
        share: in (0, 1).
    """
    _, unit, size = np.unique(group, return_inverse=True, return_counts=True)
    low, high, first = (np.full(len(size), bound) for bound in (np.iinfo(np.int64).max, -1, np.iinfo(np.int64).max))
    np.minimum.at(low, unit, labels)
    np.maximum.at(high, unit, labels)
    np.minimum.at(first, unit, rank)
    pure, counts = (low == high) & (low >= 0), np.bincount(labels[labels >= 0])
    mixed = np.bincount(labels[(labels >= 0) & ~pure[unit]], minlength=len(counts))
    order = np.lexsort((first, -size, low))
    order = order[pure[order]]
    chosen = np.zeros(len(size), bool)
    for label, start, end in _runs(low[order]):
        few = order[start:end]
        chosen[few[_of_class(size[few], share * counts[label], len(few) - (mixed[label] == 0))]] = True
    return chosen[unit]


def _of_class(sizes: Rows, wanted: float, most: int) -> Rows:
    """The groups to hold out, at most `most`, of those of a class, which come by size and rank."""
    if most < 1:
        return np.empty(0, np.int64)
    several, held, chosen = int((sizes > 1).sum()), 0, list[int]()
    for place in range(several):
        if held + sizes[place] / 2 < wanted and len(chosen) < most:
            held, chosen = held + int(sizes[place]), [*chosen, place]
    singles = min(max(0, math.ceil(wanted - held - 0.5)), len(sizes) - several, most - len(chosen))
    chosen += range(several, several + singles)
    return np.array(chosen or [int(np.flatnonzero(sizes == sizes[-1])[0])], np.int64)


def _runs(ascending: Rows) -> Iterator[tuple[int, int, int]]:
    """Each number, where it begins, and where it ends."""
    values, starts, counts = np.unique(ascending, return_index=True, return_counts=True)
    yield from zip(values.tolist(), starts.tolist(), (starts + counts).tolist(), strict=True)


def equal(source: Source) -> tuple[Rows, int | None]:
    """A number for every image [n], shared by those of the same bytes, and how many images have such a copy: None where
    more than READ would have to be read to know, all then having numbers of their own."""
    candidates = may_be_equal(source)
    if len(candidates) > READ:
        return np.arange(len(source)), None
    group = grouped(source, candidates)
    _, place, count = np.unique(group, return_inverse=True, return_counts=True)
    return group, int((count[place] > 1).sum())


def may_be_equal(source: Source) -> Rows:
    """The images that may be equal to another one, by what is known without reading them; all where nothing is."""
    if (marks := source.marks) is None:
        return np.arange(len(source))
    _, place, count = np.unique(marks, return_inverse=True, return_counts=True)
    return np.flatnonzero(count[place] > 1)


def grouped(source: Source, candidates: Rows) -> Rows:
    """A number for every image [n], shared by those of the `candidates` that have the same bytes."""
    first: dict[bytes, int] = {}
    group = np.arange(len(source))
    for i, digest in digests(source, candidates):
        group[i] = first.setdefault(digest, i)
    return group


def _composed(name: bytes) -> bytes:
    """A name as all file systems spell it, see `unlabeled.data.label.labels`."""
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", os.fsdecode(name)).encode("utf-8", "surrogateescape")


def _end_of(folder: bytes, name: str) -> int:
    """Where the last folder of a class's name ends in a path that ends in `/`; 0 where there is none."""
    parts = folder.split(b"/")[:-1]
    for place in range(len(parts) - 1, -1, -1):
        if canonical(readable(parts[place])) == name:
            return sum(len(part) + 1 for part in parts[: place + 1])
    return 0


def _hash(seed: int, name: bytes) -> int:
    return int.from_bytes(blake2b(b"%d/%b" % (seed, name), digest_size=8).digest(), "big") >> 1  # fits int64
