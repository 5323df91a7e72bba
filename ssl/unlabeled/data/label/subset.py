"""Parts of sources, and subsets of labelled samples that the seed decides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from copy import copy

import numpy as np
from torch import Tensor

from unlabeled.data.label.boxes import Boxes
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.randomness import Stream, stream


class Part(Source):
    """A source over chosen images of another, by their numbers [m] int64, ascending."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.labels, self.classes, self.boxed = source.labels[indices], source.classes, source.boxed

    @property
    def whole(self) -> Source:
        return self.source

    @property
    def unlabelled(self) -> int:
        return int((self.source.labels < 0).sum())

    @property
    def shards(self) -> np.ndarray:
        return np.searchsorted(self.indices, self.source.shards)

    @property
    def skipped(self) -> Counter[str]:
        return self.source.skipped

    def origin(self, i: int) -> tuple[Source, int]:
        return self.source.origin(int(self.indices[i]))

    def __len__(self) -> int:
        return len(self.indices)

    def ahead(self, numbers: Sequence[int]) -> Source:
        other = copy(self)
        other.source = self.source.ahead(self.indices[list(numbers)].tolist())
        return other

    def image(self, i: int) -> Tensor:
        return self.source.image(int(self.indices[i]))

    def boxes(self, i: int, height: int, width: int) -> Boxes:
        return self.source.boxes(int(self.indices[i]), height, width)

    def key(self, i: int) -> str:
        return self.source.key(int(self.indices[i]))

    def fingerprint(self) -> str:
        choice = np.ascontiguousarray(self.indices, dtype=np.int64).tobytes()
        return hashlib.sha256(self.source.fingerprint().encode() + choice).hexdigest()[:16]


def stratified(
    labels: np.ndarray, fraction: float, seed: int, at_least: int = 0, leave: int = 0, names: Sequence[str] = ()
) -> np.ndarray:
    """Choose the same share of every class; smaller shares are inside larger ones.

    Args:
        labels: [n] int64; samples with label -1 are never chosen.
        fraction: share of each class, in (0, 1], rounded to whole samples.
        seed: which samples; not negative.
        at_least: samples of every class, however small its share.
        leave: samples of every class that are not chosen, however large its share.
        names: of the classes, for the error.

    Returns:
        Sorted indices into `labels`, int64. They depend on nothing but the arguments.

    Raises:
        UserError: the fraction is not in (0, 1], or leaves a class empty.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"expected a label fraction in (0, 1], found {fraction}. Write 1 % as 0.01.")
    classes, counts = np.unique(labels, return_counts=True)
    shares = np.where(classes < 0, 0, np.minimum(counts - leave, np.maximum(at_least, np.rint(fraction * counts))))
    empty = (shares == 0) & (classes >= 0)
    if empty.any():
        fewest = counts[empty].min()
        raise UserError(
            f"a label fraction of {fraction:g} leaves {empty.sum()} of {(classes >= 0).sum()} classes without a "
            f"picture: {_called(classes[empty][counts[empty].argmin()], names)} has {fewest}. Use more than "
            f"{0.5 / fewest:.2g}; fine-tuning can also take as many pictures of every class (task.shots)."
        )
    return _first_of_each(labels, shares.astype(np.int64), seed)


def few_shot(labels: np.ndarray, shots: int, seed: int, names: Sequence[str] = ()) -> np.ndarray:
    """Choose as many samples of every class: sorted indices into labels [n]. Fewer shots are inside more. Raises
    UserError when a class has fewer."""
    classes, counts = np.unique(labels, return_counts=True)
    if (short := (counts < shots) & (classes >= 0)).any():
        raise UserError(
            f"{shots} shots were asked for, but {_called(classes[short][0], names)} has {counts[short][0]} labelled "
            f"pictures ({short.sum()} classes have too few). Ask for at most {counts[classes >= 0].min()}."
        )
    return _first_of_each(labels, np.where(classes < 0, 0, shots), seed)


def exponential(labels: np.ndarray, factor: float, seed: int) -> np.ndarray:
    """A long tail: of C classes the i-th keeps n factor^(-i / (C - 1)) samples, n the most of any (Cao et al. 2019).

    Args:
        labels: [n] int64, of classes 0 to C - 1.
        factor: how many times rarer the last class is than the first, at least 1.
        seed: which samples.

    Returns:
        Sorted indices into `labels`. A class that has fewer samples keeps them all; none is left empty.
    """
    classes, counts = np.unique(labels, return_counts=True)
    place = np.arange(len(classes)) / max(1, len(classes) - 1)
    wanted = np.maximum(1, np.floor(counts.max() * factor**-place)).astype(np.int64)
    return _first_of_each(labels, np.minimum(counts, wanted), seed)


def mask_singletons(labels: np.ndarray) -> np.ndarray:
    """The labels [n], at least 0, with -1 for samples that are alone in their class: of those none can be held out."""
    return np.where(np.bincount(labels)[labels] > 1, labels, -1)


def _called(number: int, names: Sequence[str]) -> str:
    return f"class number {number}" + (f" ({names[number]!r})" if names else "")


def _first_of_each(labels: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """Sorted indices of `shares` samples of each of the ascending classes of labels, -1 among them if it occurs."""
    rng = stream(seed, Stream.SUBSET)
    # classes one after the other, each shuffled; the first few of each class are its share
    order = np.lexsort((rng.random(len(labels)), labels))
    _, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(first, count)
    return np.sort(order[place < np.repeat(shares, count)])
