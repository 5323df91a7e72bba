"""Runs of k-means, each noted in a file of its own, by any process; what is noted is not done again.

FOLDER/about.json                 of which features and seed
FOLDER/clusters-0012-003.json     semi-supervised, 12 clusters, start 3: its inertia
FOLDER/plain-0012-003.json        the same without labels
FOLDER/classes-0012-001.json      with half of the known classes held out: accuracy on those
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from unlabeled.discover import estimate
from unlabeled.discover.features import Sides
from unlabeled.discover.kmeans import Clustering, Labelled, begin, fit
from unlabeled.errors import UserError
from unlabeled.files import json_object, write_text
from unlabeled.randomness import Stream, stream

ABOUT = "about.json"
Purpose = Literal["clusters", "plain", "classes"]
KEYS: dict[Purpose, int] = {"clusters": 0, "plain": 1, "classes": 2}
ORDER = 3  # of known classes, of which the first are held out


class Fit(NamedTuple):
    """A run of k-means: what for, with how many clusters, and the number of its start."""

    purpose: Purpose
    k: int
    start: int


class Note(BaseModel, frozen=True):
    """What is kept of a run: its inertia, or the accuracy on held-out classes in percent."""

    inertia: float
    iterations: int
    accuracy: float | None = None


class Fits:
    """Runs on the images of both sides.

    Args:
        sides: the features.
        seed: of all draws.
        folder: of the notes.
    """

    def __init__(self, sides: Sides, seed: int, folder: Path) -> None:
        self.sides, self.seed, self.folder = sides, seed, folder
        self.labelled = sides.given()

    def claim(self, about: dict[str, Any]) -> None:
        """Say of which features the notes are. Raises UserError where the folder holds notes of others."""
        file, asked = self.folder / ABOUT, {"seed": self.seed, **about}
        if file.exists() and json_object(file.read_bytes()) != asked:
            raise UserError(
                f"{self.folder} holds clusters of other pictures, features or another --seed. Choose another OUT, or "
                "remove it."
            )
        write_text(file, json.dumps(asked, indent=1) + "\n")

    def missing(self, fits: Sequence[Fit]) -> list[int]:
        """The places of the runs that have no note."""
        return [place for place, one in enumerate(fits) if self._noted(one) is None]

    def run(self, fits: Sequence[Fit], places: Sequence[int]) -> Iterator[Fit]:
        """Make some of the runs and write their notes; yields each when it is done."""
        for place in places:
            one = fits[place]
            write_text(self._file(one), self._made(one).model_dump_json() + "\n")
            yield one

    def note(self, one: Fit) -> Note:
        """The note of a run that was made. Raises UserError where it is gone."""
        if (found := self._noted(one)) is None:
            raise UserError(f"{self._file(one)} is gone or cannot be read. The same command makes it again.")
        return found

    def best(self, purpose: Purpose, k: int, starts: int) -> Clustering:
        """The clusters of the start with the least inertia, of equal ones the first; made again from its number."""
        runs = [Fit(purpose, k, start) for start in range(starts)]
        return self.clusters(min(runs, key=lambda one: self.note(one).inertia))

    def curve(self, numbers: Sequence[int]) -> estimate.Curve:
        """The accuracies on held-out classes for numbers of clusters that were run."""
        notes = {k: [self.note(one).accuracy for one in of_classes([k])] for k in numbers}
        return estimate.Curve({k: [one or 0.0 for one in found] for k, found in notes.items()})

    def clusters(self, one: Fit) -> Clustering:
        """Make a run for `clusters` or `plain`; the latter assigns labelled images, then unlabelled ones."""
        x = self.sides.unlabelled.x
        if one.purpose == "plain":
            return self._fitted(one, Labelled.none(x), torch.cat([self.sides.labelled.x, x]))
        return self._fitted(one, self.labelled, x)

    def held_out(self, start: int) -> list[str]:
        """Names of the classes that a start holds out."""
        return [self.sides.labelled.classes[number] for number in self._held(start)]

    def _made(self, one: Fit) -> Note:
        if one.purpose == "classes":
            part = estimate.split(self.labelled, self._held(one.start))
            found = self._fitted(one, part.kept, torch.cat([part.held, self.sides.unlabelled.x]))
            accuracy = estimate.found(part, found)
            return Note(inertia=found.inertia, iterations=found.iterations, accuracy=accuracy)
        found = self.clusters(one)
        return Note(inertia=found.inertia, iterations=found.iterations)

    def _fitted(self, one: Fit, labelled: Labelled, x: torch.Tensor) -> Clustering:
        uniforms = stream(self.seed, Stream.CLUSTER, KEYS[one.purpose], one.k, one.start).random(one.k)
        return fit(labelled, x, begin(labelled, x, one.k, uniforms.tolist()))

    def _held(self, start: int) -> NDArray[np.int64]:
        return estimate.held_out(stream(self.seed, Stream.CLUSTER, ORDER, start).permutation(self.sides.known))

    def _file(self, one: Fit) -> Path:
        return self.folder / f"{one.purpose}-{one.k:04d}-{one.start:03d}.json"

    def _noted(self, one: Fit) -> Note | None:
        try:
            return Note.model_validate_json(self._file(one).read_bytes())
        except (OSError, ValidationError, ValueError):
            return None


def of_classes(numbers: Sequence[int]) -> list[Fit]:
    """The runs that tell how well held-out classes are found, for some numbers of clusters."""
    return [Fit("classes", k, seed) for k in numbers for seed in range(estimate.SEEDS)]


def of_clusters(k: int, starts: int) -> list[Fit]:
    """The runs of which the best ones are the result, with labels and without."""
    purposes: tuple[Purpose, ...] = ("clusters", "plain")
    return [Fit(purpose, k, start) for purpose in purposes for start in range(starts)]
