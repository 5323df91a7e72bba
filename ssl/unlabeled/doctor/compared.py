"""Copies among the surveyed images, within a split or across both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.source import Source
from unlabeled.doctor.duplicates import Copies, find_copies
from unlabeled.doctor.pictures import Survey

FLAT = 2 / 255


class Keys:
    """Names of the images of several surveys, numbered through."""

    def __init__(self, surveys: Sequence[Survey]) -> None:
        self.surveys, self.starts = surveys, np.cumsum([0, *map(len, surveys)])

    def __call__(self, numbers: Iterable[int]) -> list[str]:
        found = (self.place(number) for number in numbers)
        return [source.key(i) for source, i in found]

    def place(self, number: int) -> tuple[Source, int]:
        """The source of an image and its number there."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        found = self.surveys[part]
        return found.source, int(found.number[number - self.starts[part]])

    def label(self, number: int) -> str:
        """The class of an image; '' without a label."""
        source, i = self.place(number)
        label = int(source.labels[i])
        return source.classes[label] if label >= 0 else ""


class Compared(NamedTuple):
    """Images of one split or of two, numbered through.

    Attributes:
        surveys: by the name of the split.
        copies: pairs of their numbers.
        split: [n] int64, number of each image's survey.
        keys: their names.
    """

    surveys: dict[str, Survey]
    copies: Copies
    split: NDArray[np.int64]
    keys: Keys


def compare(train: Survey, val: Survey | None) -> Compared | None:
    """Find copies among all readable images; None without any."""
    surveys = {name: found for name, found in (("train", train), ("val", val)) if found is not None and len(found)}
    if not surveys:
        return None
    parts = list(surveys.values())
    spectra, digests = (np.concatenate([getattr(p, name) for p in parts]) for name in ("spectrum", "digest"))
    copies = find_copies(digests, spectra, np.concatenate([part.contrast < FLAT for part in parts]))
    split = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Compared(surveys, copies, split, Keys(parts))
