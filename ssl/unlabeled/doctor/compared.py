"""Copies among the surveyed images, within a split or across both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.source import Source
from unlabeled.doctor.duplicates import Copies, close_pairs, find_copies
from unlabeled.doctor.pictures import Survey
from unlabeled.sharing.shards import HERE, Sharing

FLAT = 2 / 255


class Compared(NamedTuple):
    """Images of one split or of two, numbered through.

    Attributes:
        surveys: by the name of the split.
        copies: pairs of their numbers.
        split: [n] int64, number of each image's survey.
    """

    surveys: dict[str, Survey]
    copies: Copies
    split: NDArray[np.int64]

    def place(self, number: int) -> tuple[Source, int]:
        """The source of an image and its number there."""
        part = self.split[number]
        found = list(self.surveys.values())[part]
        return found.source, int(found.number[number - np.searchsorted(self.split, part)])

    def keys(self, numbers: Iterable[int]) -> list[str]:
        """Names of images."""
        return [source.key(i) for source, i in map(self.place, numbers)]

    def label(self, number: int) -> str:
        """The class of an image; '' without a label."""
        source, i = self.place(number)
        return source.classes[source.labels[i]] if source.labels[i] >= 0 else ""


def compare(train: Survey, val: Survey | None, sharing: Sharing = HERE) -> Compared | None:
    """Find copies among all readable images; None without any. Call it on all processes: the main one's images
    count."""
    surveys = {name: found for name, found in (("train", train), ("val", val)) if found is not None and len(found)}
    if not surveys:
        close_pairs(np.empty(0, np.uint64), sharing=sharing)  # the other processes are there too
        return None
    parts = list(surveys.values())
    spectra, digests = (np.concatenate([getattr(p, name) for p in parts]) for name in ("spectrum", "digest"))
    copies = find_copies(digests, spectra, np.concatenate([part.contrast < FLAT for part in parts]), sharing)
    split = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Compared(surveys, copies, split)
