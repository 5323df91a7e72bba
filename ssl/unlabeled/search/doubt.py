"""Labels that the nearest pictures contradict."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.look.neighbours import Neighbours


class Doubt(NamedTuple):
    """A picture whose neighbours are mostly of another class.

    Attributes:
        number: of the picture.
        label: its class, by number.
        likely: the class of most neighbours.
        share: of the neighbours with a label that are of that class, in [0, 1].
        own: share of those that are of its own class.
    """

    number: int
    label: int
    likely: int
    share: float
    own: float


def doubtful(near: Neighbours, labels: Tensor) -> list[Doubt]:
    """Labelled pictures of which more neighbours are of one other class than of their own, those with the largest
    difference first. `labels` [n] are -1 where unknown; such neighbours do not vote."""
    if not len(labels) or int(labels.max()) < 0:
        return []
    classes = int(labels.max()) + 1
    votes = torch.stack([F.one_hot(labels[row] + 1, classes + 1)[:, 1:].sum(0) for row in near.numbers])
    shares = votes / votes.sum(1, keepdim=True).clamp(min=1)
    known = labels.clamp(min=0).unsqueeze(1)
    own = shares.gather(1, known).squeeze(1)
    share, likely = shares.scatter(1, known, -1.0).max(1)
    chosen = ((labels >= 0) & (share > own)).nonzero().squeeze(1)
    gap = (share - own)[chosen].round(decimals=6)  # equal ones stay in the order of the pictures
    order = chosen[gap.argsort(descending=True, stable=True)].tolist()
    return [Doubt(i, int(labels[i]), int(likely[i]), float(share[i]), float(own[i])) for i in order]
