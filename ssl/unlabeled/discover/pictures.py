"""Thumbnails of clusters: a PNG for each, the nearest pictures above, pictures at random below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.data.source import Source
from unlabeled.discover.clusters import SHOWN, Cluster
from unlabeled.errors import BadSample
from unlabeled.look.drawing import write
from unlabeled.look.thumbnails import GREY, side_for, thumbnail
from unlabeled.progress import track

FOLDER = "pictures"


def name_of(cluster: Cluster, count: int) -> str:
    """The file of a cluster's pictures, of `count` clusters."""
    return f"{FOLDER}/cluster-{cluster.number:0{max(2, len(str(count)))}d}.png"


def thumbnails(source: Source, numbers: Sequence[int], clusters: Sequence[Cluster]) -> dict[int, Tensor]:
    """Thumbnails uint8 [3, side, side] of all pictures that are shown, by row; grey where one cannot be read any more.

    Args:
        source: of the unlabelled images.
        numbers: of the rows in it.
        clusters: that show them.
    """
    rows = sorted({row for cluster in clusters for row in (*cluster.nearest, *cluster.random)})
    side = side_for(2 * SHOWN * len(clusters))
    return {row: _small(source, numbers[row], side) for row in track(rows, "pictures of clusters", len(rows))}


def draw(folder: Path, cluster: Cluster, count: int, thumbs: dict[int, Tensor]) -> None:
    """Write a cluster's PNG below a folder. An empty cluster has none."""
    if not cluster.size:
        return
    empty = torch.full_like(next(iter(thumbs.values())), GREY)
    rows = [[thumbs[row] for row in shown] for shown in (cluster.nearest, cluster.random)]
    filled = [torch.stack([*row, *[empty] * (SHOWN - len(row))]) for row in rows]
    write(folder / name_of(cluster, count), torch.stack(filled, dim=1))


def _small(source: Source, number: int, side: int) -> Tensor:
    try:
        return thumbnail(source.image(number), side)
    except BadSample:
        return torch.full((3, side, side), GREY, dtype=torch.uint8)
