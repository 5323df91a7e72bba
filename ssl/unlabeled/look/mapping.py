"""Features and thumbnails of images as the content of `map.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.look.clusters import kmeans
from unlabeled.look.mapped import Duplicates, Mapped, Query, Thumbnails
from unlabeled.look.neighbours import Neighbours, directions, distances, doubt, duplicates, nearest
from unlabeled.look.plane import How, plane
from unlabeled.look.thumbnails import columns_for
from unlabeled.randomness import Stream, stream

NEAREST = 10  # neighbours of outliers, near-duplicates and votes
SHOWN = 8  # neighbours of a query
CLUSTERS = 10
OUTLIERS, GROUPS, MEMBERS = 24, 24, 8  # listed at most
THRESHOLD = 0.98
UNLABELLED = "no class"


class Described(NamedTuple):
    """Images that were encoded.

    Attributes:
        features: [n, D].
        names: of their files.
        classes: the class of each; '' = none.
        splits: of each; () = there is one only.
        side: of their thumbnails, pixels.
        left_out: number of images that cannot be used.
    """

    features: Tensor
    names: Sequence[str]
    classes: Sequence[str]
    splits: Sequence[str]
    side: int
    left_out: int

    @property
    def root(self) -> str:
        """The folder of all files; '' = none is common. Names need not be paths."""
        return self.names[0][: 1 + os.path.commonprefix(self.names).rfind("/")]  # noqa: RUF071

    @property
    def short(self) -> list[str]:
        """Names below the folder of all."""
        root = self.root
        return [name.removeprefix(root) for name in self.names]


def mapped(images: Described, how: How, seed: int, queries: int, about: str, step: int | None = None) -> Mapped:
    """Find neighbours, outliers and near-duplicates, and put the images on a plane; the same for the same seed.

    Raises UserError when features are not finite, or fewer than two.
    """
    if len(images.names) < 2:
        raise UserError(f"{len(images.names)} pictures can be used; expected at least 2 to map")
    if not torch.isfinite(images.features).all():
        raise UserError("the features are not finite. Take an earlier checkpoint or export.")
    x, rng = directions(images.features), stream(seed, Stream.LOOK, 1)
    near = nearest(x, max(NEAREST, SHOWN))
    voters = Neighbours(near.cosines[:, :NEAREST], near.numbers[:, :NEAREST])
    flat, groups, away = plane(x, how, seed), duplicates(voters, THRESHOLD), distances(voters)
    cluster = [f"cluster {number + 1}" for number in kmeans(x, CLUSTERS, rng).tolist()]
    asked = np.sort(rng.permutation(len(x))[:queries]).tolist()
    known = sorted({name for name in images.classes if name})
    number = {name: i for i, name in enumerate(known)}
    labels = torch.tensor([number[name] if name else -1 for name in images.classes])
    classes = [name or UNLABELLED for name in images.classes] if known else []
    words = {"class": classes, "split": list(images.splits), "cluster": cluster}
    return Mapped(
        about=about,
        plane=flat.words,
        step=step,
        root=images.root,
        names=images.short,
        points=[(float(f"{a:.5g}"), float(f"{b:.5g}")) for a, b in flat.points.tolist()],
        thumbnails=Thumbnails(side=images.side, columns=columns_for(len(x))),
        words={name: values for name, values in words.items() if values},
        numbers={"uncertainty": _rounded(doubt(voters, labels))} if known else {},
        queries=[Query(place=place, neighbours=_row(near, place)) for place in asked],
        outliers=[(place, round(float(away[place]), 4)) for place in away.argsort(descending=True)[:OUTLIERS].tolist()],
        duplicates=[Duplicates(places=one.numbers[:MEMBERS], cosine=round(one.cosine, 4)) for one in groups[:GROUPS]],
        grouped=len(groups),
        threshold=THRESHOLD,
        left_out=images.left_out,
    )


def _row(near: Neighbours, place: int) -> list[tuple[int, float]]:
    numbers, cosines = near.numbers[place, :SHOWN].tolist(), _rounded(near.cosines[place, :SHOWN])
    return list(zip(numbers, cosines, strict=True))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
