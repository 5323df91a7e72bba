"""Nearest class mean on frozen features (SimpleCIL, Zhou et al. 2023): nothing is trained, one pass over the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, exactly, hits_of, of_classes_there
from unlabeled.evaluate.protocol import Pooled, Score


class Config(Pooled, frozen=True, extra="forbid"):
    """The class whose mean has the smallest angle to a feature; means are of raw features, not of unit ones."""

    version: ClassVar[str] = "ncm/1"
    summary: ClassVar[str] = "nearest class mean"
    order: ClassVar[int] = 1
    few_labels: ClassVar[bool] = True
    name: Literal["ncm"] = "ncm"

    def scores(self, bench: Bench) -> Iterator[Score]:
        train, test = map(exactly, bench.features(self.pool, self.blocks))
        hits = hits_of(cosines(train, test.x, bench.num_classes), test.y)
        yield Score("", accuracy(hits), 100.0 * hits.cpu().numpy())


@torch.no_grad()
def cosines(train: Features, test: Tensor, num_classes: int) -> Tensor:
    """Cosines [n, num_classes] of features [n, D] with the class means; -inf for a class without an image."""
    sums = train.x.new_zeros(num_classes, train.x.shape[1]).index_add_(0, train.y, train.x)
    found = F.normalize(test, dim=1) @ F.normalize(sums, dim=1).T
    return of_classes_there(found, train.y)
