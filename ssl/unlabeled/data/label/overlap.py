"""Training and test images that overlap, found in a sample by their bytes, or are trained on as one, by folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.archive.index import readable
from unlabeled.data.source import Source
from unlabeled.errors import BadSample, UserError

TESTED = 200  # test images that are looked for
READ = 1000  # training images that are read to find them, at most
AT_ONCE = 16  # files that are read
FEW = 20  # with fewer test images a share says little
SHARE = 0.1  # of the test pictures: what is allowed, as real data sets hold copies
LEARNT = frozenset(("train", "training", "trn"))
# the best to evaluate on first
HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "testing", "tst", "holdout", "held_out")
# names that are looked at, evenly over the sorted ones
SEEN = 20_000

Rows = NDArray[np.int64]


class Shared(NamedTuple):
    """Number of test images looked for, and those found: (key, key in train)."""

    looked: int
    found: list[tuple[str, str]]

    @property
    def share(self) -> float:
        """Share of the test images that were found."""
        return len(self.found) / max(1, self.looked)


def refuse_shared(train: Source, test: Source) -> None:
    """Raise UserError when more than a SHARE of the test images are training images as well."""
    looked, found = shared = overlap(train, test)
    if shared.share <= SHARE:
        return
    key, other = found[0]
    example = key if key == other else f"{key}, which is {other} there"
    raise UserError(
        f"{len(found)} of {looked} pictures of val that were looked at are in train too, such as {example}. A score on "
        "pictures that were learnt from says nothing about others: name another split for val. If it is meant, say so: "
        "data.allow_overlap=true, or --allow-overlap."
    )


def overlap(train: Source, test: Source) -> Shared:
    """Look for test images among the training images; of mixtures, the pair of parts that share most.

    Up to TESTED test images are looked for, reading at most READ training images: all that can be equal, by what
    sources know of each without reading it (size, some values). Of more, those at the same places and others evenly.
    """
    pairs = ((one, other) for one in train.parts for other in test.parts)
    return max((_overlap(one, other) for one, other in pairs), key=lambda shared: shared.share)


def _overlap(train: Source, test: Source) -> Shared:
    looked, rows, read = _to_read(train, test)
    known = {digest: i for i, digest in digests(train, read)}
    found = [(test.key(i), train.key(known[digest])) for i, digest in digests(test, rows) if digest in known]
    return Shared(looked, found)


def _to_read(train: Source, test: Source) -> tuple[int, Rows, Rows]:
    """Number of test images to look for, and the numbers of test and training images to read for it. Where no training
    image can be equal, nothing is read."""
    rows = np.random.default_rng(0).permutation(len(test))[:TESTED]
    looked, found, read = 0, [], set[int]()
    for row, alike in zip(rows, _alike(train, test, rows), strict=True):
        if len(alike) > READ or len(more := read.union(alike.tolist())) > READ:
            break
        looked, read = looked + 1, more
        found += [row] if len(alike) else []
    if looked >= min(FEW, len(rows)):
        return looked, np.array(found, np.int64), np.array(sorted(read), np.int64)
    evenly = np.linspace(0, len(train) - 1, READ - len(rows)).astype(np.int64)
    return len(rows), rows, np.unique(np.concatenate([rows[rows < len(train)], evenly]))


def _alike(train: Source, test: Source, rows: Rows) -> Iterator[Rows]:
    """For each of some test images the training images that may be equal to it."""
    marks, others = train.marks, test.marks
    if marks is None or others is None:
        yield from [np.arange(min(len(train), READ + 1))] * len(rows)  # of more, nobody reads any
        return
    order = np.argsort(marks, kind="stable")
    ends = (np.searchsorted(marks, others[rows], side, sorter=order) for side in ("left", "right"))
    yield from (order[start:end] for start, end in zip(*ends, strict=True))


def digests(source: Source, rows: Rows) -> list[tuple[int, bytes]]:
    """(number, digest of the bytes) of images, in order; those that cannot be read are left out."""
    numbers = rows.tolist()
    # files may lie far away
    with ThreadPoolExecutor(AT_ONCE if source.encoded else 1) as pool:
        found = pool.map(partial(_digest, source), numbers)
        return [(number, digest) for number, digest in zip(numbers, found, strict=True) if digest is not None]


def _digest(source: Source, i: int) -> bytes | None:
    try:
        data = source.read(i) if source.encoded else source.image(i).numpy().tobytes()
    except BadSample:
        return None
    return blake2b(data, digest_size=16).digest()


def read_as_one(source: Source) -> list[bytes]:
    """Folders such as `train` and `val`, side by side below one place, of a source over files."""
    below: dict[bytes, set[bytes]] = {}
    for above, folder in _folders(source):
        below.setdefault(above, set()).add(folder)
    return [os.path.join(above, folder) for above, folders in sorted(below.items()) for folder in _splits(folders)]


def _folders(source: Source) -> Iterator[tuple[bytes, bytes]]:
    """Every folder of the names that are looked at, and what it lies in."""
    for i in np.unique(np.linspace(0, len(source) - 1, min(len(source), SEEN)).astype(np.int64)):
        folder = os.path.dirname(source.name(int(i)))
        above, name = os.path.split(folder)
        while name:  # the root has none
            yield above, name
            above, name = os.path.split(above)


def _splits(folders: set[bytes]) -> list[bytes]:
    """The folders named like splits, if some are for training and others for testing."""
    learnt, held_out = (
        [folder for folder in sorted(folders) if readable(folder).lower() in names] for names in (LEARNT, HELD_OUT)
    )
    return [*learnt, *held_out] if learnt and held_out else []


def how_to_tell_apart(folders: list[str]) -> str:
    """The fields of a recipe that read them as what they are called."""
    return f"data.train={folders[0]} reads the first alone, data.val={folders[1]} evaluates on another"
