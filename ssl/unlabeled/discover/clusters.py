"""What is known of every cluster: its name, size, pictures to show, likeness to the known classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlabeled.discover.features import Sides
from unlabeled.discover.kmeans import Clustering, squared_distances
from unlabeled.evaluate.openset_scores import NEIGHBOURS, knn
from unlabeled.randomness import Stream, stream

SHOWN = 9  # pictures nearest to a centre, and as many drawn at random
DRAWN = 4  # the purpose of their draw


class Cluster(NamedTuple):
    """One cluster of unlabelled images.

    Attributes:
        number: from 1 on, the known classes in their order, then the others, the largest first.
        name: of the known class, or `new 1`.
        known: whether it is a known class.
        size: number of unlabelled images.
        labelled: number of labelled ones.
        nearest: rows of unlabelled images, the nearest to the centre first; at most SHOWN.
        random: rows drawn from all of its unlabelled images; at most SHOWN.
        known_score: mean of the images' scores of being known, see `Found`; None = it is empty.
        like: the nearest known class beside its own; None = there is none.
        cosine: of the centre and that class's mean.
        spread: root mean square distance of its unlabelled images to the centre; None = it is empty.
    """

    number: int
    name: str
    known: bool
    size: int
    labelled: int
    nearest: list[int]
    random: list[int]
    known_score: float | None
    like: str | None
    cosine: float | None
    spread: float | None


class Found(NamedTuple):
    """All clusters, and images in them.

    Attributes:
        clusters: by number.
        of: [m] int64, the number of each unlabelled image's cluster.
        scores: [m], how known each unlabelled image looks: minus the squared distance of its unit features to the
            k-th nearest labelled image, between -4 and 0, see `unlabeled.evaluate.openset_scores.knn`.
        labelled_score: the mean of the same score of labelled images among the other labelled ones.
        k: of both.
    """

    clusters: list[Cluster]
    of: Tensor
    scores: Tensor
    labelled_score: float
    k: int


def describe(sides: Sides, fitted: Clustering, seed: int) -> Found:
    """Number, name and measure the clusters of semi-supervised k-means."""
    count, known, x = len(fitted.centres), sides.known, sides.unlabelled.x
    sizes = fitted.labels.bincount(minlength=count)
    by_size = known + sizes[known:].argsort(descending=True, stable=True)
    order = torch.cat([torch.arange(known, device=x.device), by_size])
    place = order.argsort()
    # half of a class's labelled images: more would reach into other classes
    counts = np.bincount(sides.labelled.labels, minlength=known)
    k = int(min(NEIGHBOURS, max(1, np.median(counts) // 2)))
    scores = knn(sides.labelled.x, x, k)
    own = knn(sides.labelled.x, sides.labelled.x, k + 1).mean()  # its own nearest is each image itself
    given = sides.given()
    means = given.totals.sums / given.totals.counts.unsqueeze(1)
    names = [*sides.labelled.classes, *(f"new {i}" for i in range(1, count - known + 1))]
    found = []
    for number, cluster in enumerate(order.tolist()):
        rows = (fitted.labels == cluster).nonzero().flatten()
        centre = fitted.centres[cluster]
        away = squared_distances(x[rows], centre.unsqueeze(0))[:, 0]
        near = rows[away.argsort(stable=True)[:SHOWN]].tolist()
        drawn = stream(seed, Stream.CLUSTER, DRAWN, number).permutation(len(rows))[:SHOWN]
        like = _nearest(centre, means, cluster)
        found.append(
            Cluster(
                number=number + 1,
                name=names[number],
                known=number < known,
                size=len(rows),
                labelled=int(counts[cluster]) if cluster < known else 0,
                nearest=near,
                random=rows[torch.from_numpy(np.sort(drawn)).to(rows.device)].tolist(),
                known_score=float(scores[rows].mean()) if len(rows) else None,
                like=None if like is None else names[like[0]],
                cosine=None if like is None else like[1],
                spread=float(away.mean().sqrt()) if len(rows) else None,
            )
        )
    return Found(found, place[fitted.labels] + 1, scores, float(own), k)


def _nearest(centre: Tensor, means: Tensor, own: int) -> tuple[int, float] | None:
    """The known class whose mean has the largest cosine with a centre, beside its own class, and that cosine."""
    cosines = torch.cosine_similarity(means, centre.unsqueeze(0))
    if own < len(means):
        cosines[own] = -torch.inf
    best = int(cosines.argmax())
    return (best, float(cosines[best])) if cosines[best].isfinite() else None


def as_json(cluster: Cluster, names: list[str], file: str | None) -> dict[str, Any]:
    """A cluster with the names of its pictures, and the file of their thumbnails."""
    told = cluster._asdict()
    told |= {key: [names[row] for row in told[key]] for key in ("nearest", "random")}
    return {**told, "picture": file}
