"""Folders of training and of test images that are about to be trained on as one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from unlabeled.data.archive.index import readable
from unlabeled.data.source import Source

LEARNT = frozenset(("train", "training", "trn"))
HELD_OUT = frozenset(("val", "valid", "validation", "dev", "eval", "test", "testing", "tst", "holdout", "held_out"))
# names that are looked at, evenly over the sorted ones
SEEN = 20_000


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
