"""Features of labelled and unlabelled images as `unlabeled embed` leaves them, as unit vectors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unlabeled.discover.kmeans import Labelled
from unlabeled.errors import UserError
from unlabeled.serve.embed import MANIFEST, read_manifest
from unlabeled.serve.shards import Stored


class Side(NamedTuple):
    """Images of one side.

    Attributes:
        x: [n, D] float64, of length one.
        labels: [n] int64, -1 where unknown.
        classes: names of the labels.
        names: of the images.
        numbers: of the images in their source.
        bad: number of images that cannot be used.
    """

    x: Tensor
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: list[str]
    numbers: list[int]
    bad: int


class Sides(NamedTuple):
    """Labelled images of known classes, and unlabelled ones.

    Attributes:
        labelled: its classes have an image each, and number from 0.
        unlabelled: their labels are of no use but for scores.
        truth: [m] int64, classes of unlabelled images: the known ones keep their numbers, new ones follow; -1 where
            unknown. None = there are no names.
        new: names of the new classes, where names of unlabelled images tell.
    """

    labelled: Side
    unlabelled: Side
    truth: NDArray[np.int64] | None
    new: tuple[str, ...]

    @property
    def known(self) -> int:
        """Number of known classes."""
        return len(self.labelled.classes)

    def given(self) -> Labelled:
        """The labelled images for k-means."""
        y = torch.from_numpy(self.labelled.labels).to(self.labelled.x.device)
        return Labelled(self.labelled.x, y, self.known)


def read(folder: Path) -> Side:
    """The features that `unlabeled embed` has left in a folder. Raises UserError where none is finite or there."""
    manifest = read_manifest(folder / MANIFEST)
    files = [Stored(folder / name) for name in sorted(manifest["files"])]
    names = [name for file in files for name in file.keys]
    if not names:
        raise UserError(f"none of the pictures of {manifest['data']} can be used: look at {folder / 'bad.jsonl'}")
    x = torch.cat([file.features.double() for file in files])
    if not x.isfinite().all():
        raise UserError("the features are not finite. Take an earlier checkpoint or export.")
    labels = torch.cat([file.label for file in files]).numpy()
    numbers = [number for file in files for number in file.index.tolist()]
    return Side(F.normalize(x, dim=1), labels, tuple(manifest["classes"]), names, numbers, manifest["bad"])


def sides(labelled: Side, unlabelled: Side) -> Sides:
    """Leave out labelled images without a class, and classes without an image; number true classes after known ones."""
    rows = np.flatnonzero(labelled.labels >= 0)
    there, y = np.unique(labelled.labels[rows], return_inverse=True)
    kept = Side(
        labelled.x[torch.from_numpy(rows)],
        y.astype(np.int64),
        tuple(labelled.classes[label] for label in there),
        [labelled.names[row] for row in rows],
        [labelled.numbers[row] for row in rows],
        labelled.bad,
    )
    if not (unlabelled.labels >= 0).any():
        return Sides(kept, unlabelled, None, ())
    new = tuple(
        name
        for label, name in enumerate(unlabelled.classes)
        if name not in kept.classes and (unlabelled.labels == label).any()
    )
    place = {name: number for number, name in enumerate((*kept.classes, *new))}
    numbers = np.array([*(place.get(name, -1) for name in unlabelled.classes), -1])
    return Sides(kept, unlabelled, numbers[unlabelled.labels], new)
