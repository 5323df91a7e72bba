"""Where labels are: folders of classes within train and val, folders of classes alone, or albums."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unlabeled.data.label.overlap import HELD_OUT, LEARNT
from unlabeled.data.source import Source
from unlabeled.start.facts import Labels

LEAST = 3  # pictures of the median folder of classes
# names that cameras, people and programs give to albums: years and dates, DCIM, numbered parts
ALBUM = re.compile(
    r"(19|20)\d\d([-_. ].*|\d{4}.*)?|\d{3}[a-z_]+.*|\d{4,}|dcim|camera|"
    r"(img|image|images|photos?|pictures?|pics?|data|part|shard|batch|album|roll|folder|misc|unsorted)[-_ ]?\d*",
    re.IGNORECASE,
)


class Splits(NamedTuple):
    """Folders named like splits: to learn from, and to evaluate on."""

    train: str
    val: str


def splits(names: Sequence[str]) -> Splits | None:
    """The folders among names that are splits; None without one of each."""
    train = [name for name in names if name.lower() in LEARNT]
    val = sorted((name for name in names if name.lower() in HELD_OUT), key=lambda name: HELD_OUT.index(name.lower()))
    return Splits(train[0], val[0]) if train and val else None


def kind(source: Source) -> Labels:
    """Whether the labels of a source, its first folders, are classes (`flat`), albums, or none."""
    if len(source.classes) < 2:
        return "none"
    albums = sum(bool(ALBUM.fullmatch(name.strip())) for name in source.classes)
    lonely = np.median(counts(source)) < LEAST
    beside = np.mean(source.labels < 0) > 0
    return "albums" if albums > len(source.classes) / 2 or lonely or beside else "flat"


def counts(source: Source) -> np.ndarray:
    """The number of pictures of each class."""
    return np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))
